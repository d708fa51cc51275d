"""What a scheduler reports of itself, and the name under which each number is shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, get_type_hints

from pds_engine.messages.base import Message
from pds_engine.messages.joining import KernelsProof
from pds_engine.messages.watching import Traffic


@dataclass(frozen=True, slots=True)
class StateMetric:
    """Makes a number of State a gauge, and a key of /pds/state with the field's own name."""

    name: str
    text: str
    """Prometheus' HELP."""
    reported: bool = True
    """Whether /pds/state has it too."""
    over_ranks: Literal["sum", "most"] = "sum"
    """What a group of several dp ranks reports (server/merged.py)."""


class State(Message, frozen=True, kw_only=True):
    """A scheduler's report to its API server; sent on every change, coalesced.

    A number that is marked as a StateMetric needs no other line to be shown. It comes last, since
    messages are arrays (docs/contract.md).
    """

    in_flight: Annotated[
        int, StateMetric("pds_requests_in_flight", "Requests known to the scheduler.")
    ] = 0
    """Waiting ones included."""
    running: Annotated[int, StateMetric("pds_requests_running", "Requests that hold a slot.")] = 0
    transfers_in_flight: Annotated[
        int, StateMetric("pds_transfers_in_flight", "Hand-overs under way.")
    ] = 0
    queued_tokens: Annotated[
        int, StateMetric("pds_queued_tokens", "Prompt tokens not computed yet.")
    ] = 0
    kv_used: Annotated[int, StateMetric("pds_kv_pages_used", "KV pages in use.")] = 0
    kv_total: Annotated[int, StateMetric("pds_kv_pages", "KV pages in all.")] = 0
    kv_quarantined: Annotated[
        int, StateMetric("pds_kv_pages_quarantined", "KV pages in quarantine.")
    ] = 0
    draining: Annotated[
        bool, StateMetric("pds_draining", "1 while no new request is taken.", over_ranks="most")
    ] = False
    ranks_ready: Annotated[int, StateMetric("pds_ranks_ready", "Ranks that joined.")] = 0
    kv_fingerprint: str = ""
    steps_done: Annotated[
        int, StateMetric("pds_steps_done", "Steps since the group started.", over_ranks="most")
    ] = 0
    oldest_step_seconds: Annotated[
        float,
        StateMetric(
            "pds_oldest_step_seconds", "Age of the oldest step.", reported=False, over_ranks="most"
        ),
    ] = 0.0
    """Among the steps in flight; 0 when idle."""
    kv_cached: Annotated[
        int, StateMetric("pds_kv_pages_cached", "Free KV pages that hold a cached prefix.")
    ] = 0
    """Not in kv_used: each holds its prefix until the page is needed for something else."""
    prefix_query_tokens: Annotated[
        int, StateMetric("pds_prefix_cache_query_tokens", "Tokens of admitted requests.")
    ] = 0
    """Since the start; of their prompts and given outputs."""
    prefix_hit_tokens: Annotated[
        int, StateMetric("pds_prefix_cache_hit_tokens", "Those found in the cache.")
    ] = 0
    preemptions: Annotated[
        int, StateMetric("pds_preemptions", "Requests preempted since the group started.")
    ] = 0
    kernels: KernelsProof | None = None
    missing: tuple[int, ...] = ()
    """Ranks that are not ready yet."""
    model_digest: str = ""
    traffic: tuple[Traffic, ...] = ()
    """What the ranks of a pipeline have exchanged, by rank; about a second old."""
    passes: Annotated[
        int,
        StateMetric("pds_dp_passes", "Passes of dp ranks, a collective each.", over_ranks="most"),
    ] = 0
    sync_seconds: Annotated[
        float,
        StateMetric(
            "pds_dp_sync_seconds", "Spent in gathering rows of dp ranks.", over_ranks="most"
        ),
    ] = 0.0
    delayer_ticks: Annotated[
        int,
        StateMetric(
            "pds_prefill_delayer_ticks", "Passes for which prompts waited.", over_ranks="most"
        ),
    ] = 0
    delayer_seconds: Annotated[
        float,
        StateMetric("pds_prefill_delayer_seconds", "How long prompts waited.", over_ranks="most"),
    ] = 0.0
    delayer_passes: tuple[tuple[str, int], ...] = ()
    """Passes with prompts, by what the prefill delayer decided; equal on all dp ranks."""
    startup: tuple[tuple[str, float], ...] = ()
    """Seconds of each phase of the start of the rank that took longest; of those that are ready."""


def _metrics() -> dict[str, StateMetric]:
    hints = get_type_hints(State, include_extras=True)
    return {
        field: mark
        for field, hint in hints.items()
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, StateMetric)
    }


STATE_METRICS: Mapping[str, StateMetric] = _metrics()
"""The numbers of State that are shown, by the names of its fields."""
