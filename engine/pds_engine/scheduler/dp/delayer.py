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

Reason = Literal[
    # the pass runs with its prompts
    "nothing",
    "aged",
    "saturated",
    "timeout",
    "idle",
    "fused",
    "aligned",
    "drained",
    "low",
    "worth",
    "stalled",
    # it runs without them
    "fuse",
    "rest",
    "align",
    "fill",
]
WAITS: frozenset[Reason] = frozenset(("fuse", "rest", "align", "fill"))
"""The reasons for which a pass runs without its prompts."""

FUSE = 2
"""Paced passes without a further token after which prompts wait for no others, where nothing
decodes."""
RUN = 30
"""Tenths of a pass without prompts that passes with some must have cost before others rest: so
rests add a third to the time of prompts at most …"""
STREAK = 10
"""… and nothing where a rank has been behind with prompts for so many times max_ticks: they are
more than it can compute, and rests would make that less."""


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
    align: float
    """Of what a prompt's own tokens take: so long it waits for those of other ranks."""

    @property
    def tight(self) -> int:
        """The bound while a prompt is half done: it holds pages."""
        return max(1, self.max_ticks // 2)

    @property
    def streak(self) -> int:
        """What the prompts may cost that a rank is behind with, until rests end; in tenths."""
        return 10 * STREAK * self.max_ticks

    @property
    def patience(self) -> int:
        """Passes without a further token to compute after which no more are waited for."""
        return max(1, self.max_ticks // 3)


class Wait(NamedTuple):
    """What the rows so far say about the prompts that wait; equal on all ranks."""

    waited: int = 0
    """Passes in a row that ran without the prompts that there were."""
    since: int = 0
    """Passes without prompts since the last one with some."""
    cost: int = 0
    """What passes with prompts have added since the last rest, in tenths of one without …"""
    behind: tuple[int, ...] = ()
    """… and since each rank last computed all of its prompts that have a slot."""
    most: int = 0
    """The most tokens of prompts that a pass of this wait would have computed."""
    stalled: int = 0
    """Passes of this wait since that number last grew."""
    peak: int = 0
    """The most requests that decoded in a pass of this wait."""
    lacking: int = 0
    """Decode rows that its passes had less than the peak, in all: what the wait has cost."""

    def seen(self, rows: Sequence[SyncRow]) -> Self:
        """With what these rows say, before the verdict about them."""
        tokens = sum(row.prompt_tokens for row in rows)
        running = sum(row.running for row in rows)
        peak = max(self.peak, running)
        return self._replace(
            most=max(self.most, tokens),
            stalled=0 if tokens > self.most else self.stalled + 1,
            peak=peak,
            lacking=self.lacking + peak - running,
        )

    def after(self, rows: Sequence[SyncRow], reason: Reason, bounds: Bounds) -> Self:
        """The state for the next pass."""
        if reason not in WAITS and reason != "nothing":
            added = price(rows)
            sums = self.behind or (0,) * len(rows)
            behind = (
                (before + added)
                * ((row.begun or row.cut) and row.pending_tokens > row.prompt_tokens)
                for before, row in zip(sums, rows, strict=True)
            )
            return type(self)(cost=self.cost + added, behind=tuple(behind))
        since = self.since + 1
        cost = 0 if since >= bounds.rest_ticks else self.cost
        if reason in WAITS:
            return self._replace(waited=self.waited + 1, since=since, cost=cost)
        # A pass may compute no prompt while some wait: none has a slot yet, or it is the turn of
        # decode rows. That neither ends a wait nor counts as one.
        if any(row.pending_tokens for row in rows):
            return self._replace(since=since, cost=cost)
        return type(self)(since=since, cost=cost)


def price(rows: Sequence[SyncRow]) -> int:
    """What the prompts add to the pass, in tenths of one without."""
    return max(row.fixed for row in rows) + max(row.price for row in rows)


def judge(rows: Sequence[SyncRow], wait: Wait, bounds: Bounds) -> Reason:
    """Why the pass's prompts run or wait; the first line that holds decides.

    Args:
        wait: the state, with these rows already seen.
    """
    tokens = sum(row.prompt_tokens for row in rows)
    begun = any(row.begun for row in rows)
    queues = sum(row.queued for row in rows if not row.cut)
    if not tokens:
        return "nothing"
    if any(row.aged for row in rows):
        return "aged"
    cut = [row.prompt_tokens for row in rows if row.cut]
    if 2 * sum(cut) >= tokens and len(cut) >= queues:
        return "saturated"
    if wait.waited >= (bounds.tight if begun else bounds.max_ticks):
        return "timeout"
    everywhere = all(row.prompt_tokens for row in rows)
    if not any(row.decode_tokens for row in rows):
        if any(row.running for row in rows):
            return "idle"
        stays = wait.stalled >= FUSE or wait.waited >= bounds.patience
        return "fused" if everywhere or begun or stays else "fuse"
    if (
        wait.since < bounds.rest_ticks
        and wait.cost >= RUN
        and max(wait.behind, default=0) < bounds.streak
    ):
        return "rest"
    if everywhere:
        return "aligned"
    if not queues:
        longest = bounds.align * max(row.price for row in rows)
        return "drained" if begun or 10 * wait.waited >= longest else "align"
    if any(row.kv_low for row in rows):
        return "low"
    if 10 * wait.lacking >= price(rows) * wait.peak:
        return "worth"
    return "stalled" if wait.stalled >= bounds.patience else "fill"


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
        return cls(Bounds(knobs.max_ticks, knobs.rest_ticks, knobs.align))

    def decide(self, rows: Sequence[SyncRow]) -> Verdict:
        """Whether the pass of these rows runs with its prompts. Called once a pass, on all ranks.

        Args:
            rows: of all dp ranks, in order, as gathered; at dp 1 the rank's own.
        """
        seen = self.wait.seen(rows)
        reason = judge(rows, seen, self.bounds)
        self.wait = seen.after(rows, reason, self.bounds)
        waits = reason in WAITS
        return Verdict(not waits, reason, seen.waited + waits)
