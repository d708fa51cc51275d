"""What dp ranks made of their passes, judged again from the rows that they gathered.

Every pass is one gather. Its verdict and the shape of its step follow from its rows alone, so they
are found here once more, and compared with what each rank did.
"""

from collections.abc import Sequence
from typing import NamedTuple

from pds_engine.messages import StepPlan
from pds_engine.scheduler.dp.batches import padded
from pds_engine.scheduler.dp.delayer import Delayer
from pds_engine.scheduler.dp.record import DelayRecord
from pds_engine.scheduler.dp.rows import SyncRow, tokens, unpack
from pds_engine.scheduler.scheduler import Scheduler
from pds_engine.scheduler.settings import Settings


def disagreements(
    settings: Settings,
    passes: Sequence[Sequence[int]],
    schedulers: Sequence[Scheduler],
    plans: Sequence[Sequence[StepPlan]],
) -> list[str]:
    """What is wrong with the passes of a group whose ranks are all done.

    Args:
        passes: what each gather brought.
        plans: of each dp rank.
    """
    if settings.parallelism.dp == 1:
        return ["a lone rank gathers"] if passes else []
    rows = [unpack(values, settings.parallelism.dp) for values in passes]
    judge = _Judge(settings)
    steps = [step for each in rows if (step := judge.step(each)) is not None]
    found, right = list(judge.found), judge.record
    for rank, scheduler in enumerate(schedulers):
        where, delays = scheduler.planner.passes, scheduler.planner.delays
        if (where.next_id, where.gathering, where.parked) != (len(passes), False, True):
            found.append(f"dp rank {rank} is in pass {where.next_id} of {len(passes)}, not parked")
        if (delays.outcomes, delays.ticks) != (right.outcomes, right.ticks):
            found.append(
                f"dp rank {rank} judged {dict(delays.outcomes)}, its rows say "
                f"{dict(right.outcomes)}"
            )
    if [each[0].pass_id for each in rows] != list(range(len(passes))):
        found.append(f"passes {[each[0].pass_id for each in rows]} were gathered")
    return [*found, *_misshapen(settings, steps, plans)]


def peaks(settings: Settings, passes: Sequence[Sequence[int]]) -> list[int]:
    """The most requests of each rank that decoded at once."""
    dp = settings.parallelism.dp
    rows = [unpack(values, dp) for values in passes]
    return [max((each[rank].running for each in rows), default=0) for rank in range(dp)]


class Agreed(NamedTuple):
    """What the rows of a pass say about its step."""

    extends: bool
    """Some rank computes tokens of a prompt in it."""
    counts: tuple[int, ...]
    """Tokens of each rank."""


class _Judge:
    """Goes through the passes in order, and sees that waits are bounded."""

    def __init__(self, settings: Settings) -> None:
        self.found: list[str] = []
        self.record = DelayRecord()
        self._delayer = Delayer.of(settings)
        self._waited = 0
        """Passes in a row that ran without the prompts that there were."""

    def step(self, rows: Sequence[SyncRow]) -> Agreed | None:
        """The step of these rows; None: there is none."""
        prompts = any(row.prompt_tokens for row in rows)
        runs = self._runs(rows, prompts)
        counts = tokens(rows, prompts=runs)
        if prompts and not any(counts) and any(row.running for row in rows):
            self.found.append(f"pass {rows[0].pass_id} computes nothing, and requests decode")
        return Agreed(prompts and runs, counts) if any(counts) else None

    def _runs(self, rows: Sequence[SyncRow], prompts: bool) -> bool:
        if self._delayer is None:
            return True
        verdict = self._delayer.decide(rows)
        self.record.add(verdict, False, 0.0)
        if verdict.runs:
            # Those that waited may have been given up: others begin a wait of their own.
            if prompts or not any(row.pending_tokens for row in rows):
                self._waited = 0
            return True
        self._waited += 1
        begun = any(row.begun for row in rows)
        bounds = self._delayer.bounds
        bound = bounds.tight if begun else bounds.max_ticks
        if self._waited > bound:
            which = "prompts half done" if begun else "prompts"
            self.found.append(
                f"pass {rows[0].pass_id}: {which} wait for {self._waited} passes, not {bound}"
            )
        return False


def _misshapen(
    settings: Settings,
    steps: Sequence[Agreed],
    plans: Sequence[Sequence[StepPlan]],
) -> list[str]:
    """Every pass with tokens is one step of all ranks, of one shape."""
    found, tp = [], settings.parallelism.tp
    for rank, own in enumerate(plans):
        if len(own) != len(steps):
            found.append(f"dp rank {rank} issued {len(own)} steps, {len(steps)} were agreed on")
        for plan, (extends, each) in zip(own, steps, strict=False):
            shape, most = plan.dp_tokens, padded(max(each), tp)
            # An idle rank that is padded to a prompt's length takes the extend path.
            bounds = [padded(count, tp) if extends else most for count in each]
            if len(shape) != len(each) or plan.padded_tokens != shape[rank]:
                found.append(f"dp rank {rank}, step {plan.step_id}: {shape} is no shape")
            elif not all(map(_between, each, shape, bounds)):
                found.append(f"step {plan.step_id} has {shape}, its ranks have {each} tokens")
        if [plan.dp_tokens for plan in own] != [plan.dp_tokens for plan in plans[0]]:
            found.append(f"dp rank {rank} issued other steps than rank 0")
    return found


def _between(low: int, value: int, high: int) -> bool:
    return low <= value <= high
