"""What a group reports of itself: alive, ready, and its state (docs/contract.md; pure)."""

from collections.abc import Sequence
from typing import Any

from msgspec import structs

from pds_engine.config import EngineConfig
from pds_engine.messages import PROTOCOL, STATE_METRICS, KernelsProof, State


def unhealthy(
    state: State | None, age: float, step_timeout: float, error: str | None
) -> str | None:
    """Why the step loop is not alive, or None.

    An idle scheduler reports nothing; a busy one reports every step. So silence of `step_timeout`
    seconds while requests run means a stuck step.
    """
    if error is not None:
        return error
    if state is None:
        return None  # still joining: not ready, but not dead
    oldest = state.oldest_step_seconds + (age if state.running else 0.0)
    if oldest >= step_timeout:
        return f"the oldest step has taken {oldest:.1f} s"
    return None


def unready(state: State | None, config: EngineConfig) -> str | None:
    """Why no request should come yet, or None."""
    ranks = config.parallelism.ranks
    joined = state.ranks_ready if state else 0
    if joined != ranks:
        missing = ", ".join(str(rank) for rank in state.missing) if state else ""
        return f"{joined} of {ranks} ranks have joined{missing and f', missing: {missing}'}"
    if config.cache.warmup and not (state and state.kernels):
        return "the kernels are not proven warm"
    return None


def report(
    state: State | None,
    config: EngineConfig,
    *,
    incarnation: str,
    key_id: str | None,
    in_flight: int,
    draining: bool,
    error: str | None,
    dp_ranks: Sequence[State] = (),
) -> dict[str, Any]:
    """The body of /pds/state.

    `key_id` names the control key that the group holds; None where it made its own.
    `dp_ranks` are their own reports, where there are several; `state` is all of them in one.
    `in_flight` counts the server's requests; it stands in place of the scheduler's.
    """
    known = state or State()
    problem = error or unready(state, config)
    return {
        "role": config.role,
        "group": config.pod.group,
        "revision": config.pod.revision,
        "incarnation": incarnation,
        "model": config.model.name,
        "model_digest": known.model_digest,
        "max_model_len": config.max_model_len,
        "control": f"{config.pod.ip}:{config.http.control_port}",
        "kv_fingerprint": known.kv_fingerprint,
        "protocol": PROTOCOL,
        "key_id": key_id,
        "ready": problem is None,
        "reason": problem or "",
        **{name: getattr(known, name) for name in _REPORTED},
        "in_flight": in_flight,
        "draining": draining or known.draining,
        "kernels": _kernels(known),
        "startup": dict(known.startup),
        "dp_ranks": [{key: getattr(rank, key) for key in _LOADS} for rank in dp_ranks],
        "traffic": [structs.asdict(each) for each in known.traffic],
    }


def _kernels(state: State) -> dict[str, Any]:
    proof = state.kernels
    return {} if proof is None else {name: getattr(proof, name) for name in KERNELS}


KERNELS = KernelsProof.__struct_fields__
_LOADS = ("running", "queued_tokens", "kv_used", "kv_total", "in_flight")
"""What is said of each dp rank."""
_REPORTED = [name for name, metric in STATE_METRICS.items() if metric.reported]
