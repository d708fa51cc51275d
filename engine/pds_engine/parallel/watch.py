"""Who holds up a step, by the last reports of the ranks' watchdogs. Pure (pipeline.md).

A step that is not done in step_timeout ends the group; whoever reads the log then wants to know
which stage it was: one that is silent (stopped, or its machine gone), one that computes for too
long, or one whose peer's data has not come although it was sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pds_engine.messages import Progress
from pds_engine.parallel.layout import rank_name

PERIOD = 1.0
"""Seconds between two reports of a rank."""
SILENCE = 2.5
"""Seconds without a report after which a rank is taken for stopped."""
_WAITS_FOR = {"hidden": "the hidden states", "output": "the output", "sent": "the taking"}


@dataclass(frozen=True, slots=True)
class Heard:
    """A rank's last report, and when it came."""

    progress: Progress
    at: float


@dataclass(frozen=True, slots=True)
class Blame:
    """The rank that holds a step up, and why."""

    rank: int
    why: str


def blame(heard: Mapping[int, Heard], step: int, ranks: int, tp: int, now: float) -> Blame:
    """Who holds up `step`, the oldest in flight, by the last reports of ranks 0 … ranks-1.

    A silent rank comes first, the longest silent of several. Else whoever the last stage waits for,
    directly or through others, is followed to the one that waits for nobody.
    """
    quiet = [(heard[rank].at if rank in heard else 0.0, rank) for rank in range(ranks)]
    at, rank = min(quiet)
    if now - at > SILENCE:
        return Blame(rank, _silent(rank, heard, tp, now))
    visited: list[int] = []
    rank = ranks - tp
    while rank not in visited:
        visited.append(rank)
        there = heard[rank].progress
        behind = _behind(heard, rank, tp)
        if there.peer < 0 and behind is not None:
            rank = behind
        elif there.peer < 0:
            return Blame(rank, _alone(there, heard[rank].at, step, tp, now))
        elif heard[there.peer].progress.done >= there.step and there.doing != "sent":
            return Blame(rank, f"{_waits(there, tp)}, which has sent them")
        else:
            rank = there.peer
    circle = " → ".join(str(each) for each in [*visited[visited.index(rank) :], rank])
    return Blame(rank, f"{_waits(heard[rank].progress, tp)}; ranks wait in a circle: {circle}")


def describe(heard: Heard, tp: int, now: float) -> str:
    """One rank's state for the log: what it does, and the last plans that it began."""
    there = heard.progress
    return (
        f"{_doing(there, tp)}; heard {now - heard.at:.1f} s ago; step {there.done} is done; "
        f"{there.mailbox} orders wait; last plans: {'; '.join(there.plans) or 'none'}"
    )


def _behind(heard: Mapping[int, Heard], rank: int, tp: int) -> int | None:
    """A rank of the same stage that has not come so far: the others wait for it in a collective."""
    first = rank - rank % tp
    step = heard[rank].progress.step
    for sibling in range(first, first + tp):
        there = heard[sibling].progress
        if there.step < step or (there.step == step and there.peer >= 0):
            return sibling
    return None


def _silent(rank: int, heard: Mapping[int, Heard], tp: int, now: float) -> str:
    if rank not in heard:
        return f"{rank_name(rank, tp)} has never reported"
    last = heard[rank]
    return f"{_doing(last.progress, tp)} when it fell silent {now - last.at:.1f} s ago"


def _alone(there: Progress, at: float, step: int, tp: int, now: float) -> str:
    if there.doing == "compute":
        return f"{_doing(there, tp)} for {there.seconds + now - at:.1f} s"
    if there.done >= step:
        return f"{rank_name(there.rank, tp)} has finished step {step}, and its result has not come"
    return f"{_doing(there, tp)}, and has not begun step {step}"


def _doing(there: Progress, tp: int) -> str:
    name = rank_name(there.rank, tp)
    if there.peer >= 0:
        return _waits(there, tp)
    if there.doing == "compute":
        return f"{name} was computing step {there.step}"
    return f"{name} was {'setting up' if there.doing == 'setup' else 'idle'}"


def _waits(there: Progress, tp: int) -> str:
    return (
        f"{rank_name(there.rank, tp)} was waiting since {there.seconds:.1f} s for "
        f"{_WAITS_FOR[there.doing]} of step {there.step} by {rank_name(there.peer, tp)}"
    )
