"""The least schedulers that can drive the ranks of several dp ranks: plans follow from lengths.

Requests end by their count of tokens alone, so that every rank knows what all dp ranks compute in
each pass, as the gathered rows tell schedulers.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pds_engine.messages import Row, Sampling, StepDone, StepPlan
from pds_engine.scheduler.dp.batches import padded
from runner_driver import Driver, Sequence_

Execute = Callable[[StepPlan], StepDone | None]


@dataclass(frozen=True)
class Load:
    """What one dp rank has to do."""

    prompts: Sequence[Sequence[int]] = ()
    arrives: int = 0
    """The pass in which its prompts are there."""
    chunk: int = 64
    budget: int = 4096
    """Tokens of a pass."""


@dataclass(frozen=True)
class Part:
    """A request's part of a pass."""

    request: int
    start: int
    length: int
    samples: bool
    ends: bool
    """Nothing of the request comes after it."""


def passes(load: Load, count: int) -> Iterator[list[Part]]:
    """What the dp rank computes in each pass, `count` tokens for every prompt."""
    for _ in range(load.arrives):
        yield []
    computed = [0] * len(load.prompts)
    totals = [len(prompt) for prompt in load.prompts]
    ends = [total + count - 1 for total in totals]
    while any(done < end for done, end in zip(computed, ends, strict=True)):
        taken, left = list[Part](), load.budget
        for at, done in enumerate(computed):
            length = min(load.chunk, totals[at] - done, left)
            if done < ends[at] and length > 0:
                end = done + length
                taken.append(Part(at, done, length, end == totals[at], end == ends[at]))
                computed[at], left = end, left - length
                totals[at] += end == totals[at]
        yield taken


def plans(
    loads: Sequence[Load], count: int, tp: int, *, even: bool
) -> Iterator[tuple[list[list[Part]], tuple[int, ...]]]:
    """Of each pass, the parts of every dp rank and the tokens that each is padded to."""
    for each in zip_longest(*(passes(load, count) for load in loads), fillvalue=[]):
        tokens = [padded(sum(part.length for part in parts), tp) for parts in each]
        yield list(each), tuple([max(tokens)] * len(tokens) if even else tokens)


def run(
    driver: Driver, loads: Sequence[Load], count: int, *, even: bool, execute: Execute | None = None
) -> list[list[int]] | None:
    """This rank's part of all passes: the tokens of its dp rank's prompts; None where the stage
    does not sample."""
    split, own = driver.config.parallelism, driver.runner_part.dp_rank
    compute = execute or (lambda plan: driver.runner.launch(plan, None).collect())
    options = Sampling(max_tokens=count, temperature=0.0)
    requests: list[Sequence_] = [
        driver.admit(slot, prompt, options, 0) for slot, prompt in enumerate(loads[own].prompts)
    ]
    for step, (all_parts, tokens) in enumerate(plans(loads, count, split.tp, even=even)):
        parts = all_parts[own]
        plan = StepPlan(
            step_id=step,
            rows=tuple(_row(driver, requests[part.request], part) for part in parts),
            expects_output=split.pp > 1 and any(p.samples and not p.ends for p in parts),
            depends_on=step - 1 if split.pp > 1 else -1,
            padded_tokens=tokens[own],
            dp_tokens=tokens if split.dp > 1 else (),
        )
        done = compute(plan)
        if done is not None:
            sampled = [requests[part.request] for part in parts if part.samples]
            for request, token in zip(sampled, done.tokens, strict=True):
                request.output.append(token)
    return [request.output for request in requests] if driver.runner_part.samples else None


def _row(driver: Driver, request: Sequence_, part: Part) -> Row:
    end, page = part.start + part.length, driver.page_size
    new = end > len(request.prompt) and (end - 1) % page == 0
    return Row(
        slot=request.slot,
        gen=request.gen,
        start=part.start,
        length=part.length,
        new_pages=(request.pages.pop(0),) if new else (),
        samples=part.samples,
    )
