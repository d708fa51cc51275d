"""Who holds up a step, by the last reports of the ranks' watchdogs. Pure (pipeline.md).

A step that is not done in step_timeout ends the group; whoever reads the log then wants to know
which stage it was: one that is silent (stopped, or its machine gone), one that computes for too
long, or one whose peer's data has not come although it was sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pds_engine.messages import Progress
from pds_engine.parallel.layout import Numbering

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


def blame(
    heard: Mapping[int, Heard], step: int, ranks: int, tp: int, now: float, *, dp: int = 1
) -> Blame:
    """Who holds up `step`, the oldest in flight, by the last reports of ranks 0 … ranks-1: all
    ranks of the group, those of other dp ranks too, since a step is a pass of them all.

    A silent rank comes first, the longest silent of several. Else whoever the last stage waits for,
    directly or through others, is followed to the one that waits for nobody.
    """
    numbering = Numbering(tp, dp)
    quiet = [(heard[rank].at if rank in heard else 0.0, rank) for rank in range(ranks)]
    at, rank = min(quiet)
    if now - at > SILENCE:
        return Blame(rank, _silent(rank, heard, numbering, now))
    visited: list[int] = []
    rank = ranks - numbering.width
    while rank not in visited:
        visited.append(rank)
        there = heard[rank].progress
        behind = _behind(heard, rank, numbering)
        if there.peer < 0 and behind is not None:
            rank = behind
        elif there.peer < 0:
            return Blame(rank, _alone(there, heard[rank].at, step, numbering, now))
        elif heard[there.peer].progress.done >= there.step and there.doing != "sent":
            return Blame(rank, f"{_waits(there, numbering)}, which has sent them")
        else:
            rank = there.peer
    circle = " → ".join(str(each) for each in [*visited[visited.index(rank) :], rank])
    waits = _waits(heard[rank].progress, numbering)
    return Blame(rank, f"{waits}; ranks wait in a circle: {circle}")


def describe(heard: Heard, tp: int, now: float, *, dp: int = 1) -> str:
    """One rank's state for the log: what it does, and the last plans that it began."""
    there, doing = heard.progress, _doing(heard.progress, Numbering(tp, dp))
    return (
        f"{doing}; heard {now - heard.at:.1f} s ago; step {there.done} is done; "
        f"{there.mailbox} orders wait; last plans: {'; '.join(there.plans) or 'none'}"
    )


def _behind(heard: Mapping[int, Heard], rank: int, numbering: Numbering) -> int | None:
    """A rank of the same stage that has not come so far: the others wait for it in a collective."""
    step = heard[rank].progress.step
    for sibling in numbering.stage(numbering.place(rank).stage):
        there = heard[sibling].progress
        if there.step < step or (there.step == step and there.peer >= 0):
            return sibling
    return None


def _silent(rank: int, heard: Mapping[int, Heard], numbering: Numbering, now: float) -> str:
    if rank not in heard:
        return f"{numbering.name(rank)} has never reported"
    last = heard[rank]
    return f"{_doing(last.progress, numbering)} when it fell silent {now - last.at:.1f} s ago"


def _alone(there: Progress, at: float, step: int, numbering: Numbering, now: float) -> str:
    if there.doing == "compute":
        return f"{_doing(there, numbering)} for {there.seconds + now - at:.1f} s"
    if there.done >= step:
        return f"{numbering.name(there.rank)} has finished step {step}, and its result has not come"
    return f"{_doing(there, numbering)}, and has not begun step {step}"


def _doing(there: Progress, numbering: Numbering) -> str:
    name = numbering.name(there.rank)
    if there.peer >= 0:
        return _waits(there, numbering)
    if there.doing == "compute":
        return f"{name} was computing step {there.step}"
    return f"{name} was {'setting up' if there.doing == 'setup' else 'idle'}"


def _waits(there: Progress, numbering: Numbering) -> str:
    return (
        f"{numbering.name(there.rank)} was waiting since {there.seconds:.1f} s for "
        f"{_WAITS_FOR[there.doing]} of step {there.step} by {numbering.name(there.peer)}"
    )
