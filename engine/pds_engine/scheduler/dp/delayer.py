"""S4: whether the prompts of a pass are computed in it, or wait for those of a later one.

A pass with prompts costs all dp ranks more than one without, however few prompts it has: all wait
for the rank that computes most, and captured graphs of decode steps cannot be replayed. So few
passes with many prompts are better than many with few, as long as nobody waits for nothing.

The verdict is a function of the gathered rows and of a state that is folded over them: all ranks
decide alike, without a clock. (data-parallel.md: the table, and what is learnt from whom.)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self

from pds_engine.config import EngineConfig
from pds_engine.scheduler.dp.rows import SyncRow

Runs = Literal[
    "nothing", "idle", "aged", "saturated", "timeout", "drained", "low", "worth", "stalled", "fused"
]
Waits = Literal["rest", "fuse", "fill"]
Reason = Runs | Waits
WAITS: frozenset[Reason] = frozenset(("rest", "fuse", "fill"))
"""The reasons for which a pass runs without prompts; for all others it runs with them."""

EXTRA = 2
"""What a pass costs more with prompts than without, in passes without. Published runs have 1 to 7;
a wait of half or twice the best length costs a quarter more than the best, so 2 is near for all."""
FUSE = 3
"""Paced passes that a role=prefill group, which has no decode step to hide a wait behind, waits."""


class Verdict(NamedTuple):
    """What becomes of a pass's prompts, on all ranks."""

    runs: bool
    """False: the pass runs without prompts."""
    reason: Reason
    waited: int
    """Passes in a row that prompts have waited for, this one included if it runs without them."""


class Bounds(NamedTuple):
    """How long prompts may wait, in passes."""

    max_ticks: int
    rest_ticks: int
    fuses: bool
    """role=prefill: nothing decodes, and prompts that come almost together share a pass."""

    @property
    def tight(self) -> int:
        """The bound while a prompt is half done: it holds pages."""
        return max(1, self.max_ticks // 4)

    @property
    def patience(self) -> int:
        """Passes without a further token to compute after which no more are waited for."""
        return max(1, self.max_ticks // 3)


class Wait(NamedTuple):
    """What the rows so far say about the prompts that wait; equal on all ranks."""

    waited: int = 0
    """Passes in a row that ran without the prompts that there were."""
    since: int = 1 << 30
    """Passes without prompts since the last one with some."""
    most: int = 0
    """The most tokens of prompts that a pass of this wait would have computed."""
    stalled: int = 0
    """Passes of this wait since that number last grew."""
    peak: int = 0
    """The most requests that decoded in a pass of this wait."""
    idle: int = 0
    """Decode rows that its passes had less than the peak, in all: what the wait has cost."""

    def seen(self, rows: Sequence[SyncRow]) -> Self:
        """With what these rows say, before the verdict about them."""
        tokens = sum(row.prompt_tokens for row in rows)
        running = sum(row.running for row in rows)
        peak = max(self.peak, running)
        grew = tokens > self.most
        return self._replace(
            most=max(self.most, tokens),
            stalled=0 if grew else self.stalled + 1,
            peak=peak,
            idle=self.idle + peak - running,
        )

    def after(self, rows: Sequence[SyncRow], reason: Reason) -> Self:
        """The state for the next pass."""
        if reason in WAITS:
            return self._replace(waited=self.waited + 1, since=self.since + 1)
        if reason != "nothing":
            return type(self)(since=0)
        # Where steps of two kinds take turns, a pass may propose no prompt while some wait: it
        # neither ends a wait nor counts as one.
        if any(row.pending_tokens for row in rows):
            return self._replace(since=self.since + 1)
        return type(self)(since=self.since + 1)


def judge(rows: Sequence[SyncRow], wait: Wait, bounds: Bounds) -> Reason:
    """Why the pass's prompts run or wait; the first line that holds decides.

    Args:
        wait: the state, with these rows already seen.
    """
    tokens = sum(row.prompt_tokens for row in rows)
    if not tokens:
        return "nothing"
    if any(row.aged for row in rows):
        return "aged"
    cut = sum(row.prompt_tokens for row in rows if row.cut)
    if 2 * cut >= tokens:
        return "saturated"
    if wait.waited >= (bounds.tight if any(row.begun for row in rows) else bounds.max_ticks):
        return "timeout"
    if not any(row.decode_tokens for row in rows):
        return _fused(rows, wait) if bounds.fuses else "idle"
    if wait.since < bounds.rest_ticks:
        return "rest"
    if not any(row.pending_tokens > row.prompt_tokens for row in rows if not row.cut):
        return "drained"
    if any(row.kv_low for row in rows):
        return "low"
    if wait.idle >= EXTRA * wait.peak:
        return "worth"
    return "stalled" if wait.stalled >= bounds.patience else "fill"


def _fused(rows: Sequence[SyncRow], wait: Wait) -> Reason:
    everywhere = all(row.prompt_tokens for row in rows)
    return "fused" if everywhere or wait.waited >= FUSE else "fuse"


@dataclass(slots=True)
class Delayer:
    """The rule, and its state. One for each dp rank; all are equal after every pass."""

    bounds: Bounds
    wait: Wait = field(default=Wait())

    @classmethod
    def of(cls, config: EngineConfig) -> Self | None:
        """The delayer of a group; None where none is wanted, or where it has nothing to decide."""
        asked = config.delayer.enabled
        wanted = config.parallelism.dp > 1 if asked is None else asked
        if config.role == "decode" or not wanted:
            return None
        knobs = config.delayer
        return cls(Bounds(knobs.max_ticks, knobs.rest_ticks, fuses=config.role == "prefill"))

    def decide(self, rows: Sequence[SyncRow]) -> Verdict:
        """Whether the pass of these rows runs with its prompts. Called once a pass, on all ranks.

        Args:
            rows: of all dp ranks, in order, as gathered; at dp 1 the rank's own.
        """
        seen = self.wait.seen(rows)
        reason = judge(rows, seen, self.bounds)
        self.wait = seen.after(rows, reason)
        waits = reason in WAITS
        return Verdict(not waits, reason, self.wait.waited if waits else seen.waited)
