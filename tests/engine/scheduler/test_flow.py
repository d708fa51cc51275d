"""Chunks flow: a long prompt's time by counting ticks, in each of which a stage computes one step.

A stage takes a step when the stage before has done it; the first one also waits for the tokens that
the step reads (depends_on), which it has when the last stage is done with their step.
"""

from typing import Any

import pytest
from pds_engine.messages import StepPlan
from scheduling.bench import Bench, MakeBench

CHUNK = 32


class Pipeline:
    """The stages of a bench, and the clock."""

    def __init__(self, b: Bench) -> None:
        self.b = b
        self.ticks = 0
        self.plans: list[StepPlan] = []
        self.passed = [0] * b.settings.parallelism.pp
        """Steps that each stage has done."""
        self.said: dict[str, int] = {}
        """Tokens of each request so far."""
        self.issue()

    def issue(self) -> None:
        out = self.b.core.plan(self.b.now)
        self.plans += [item.message for item in out if isinstance(item.message, StepPlan)]

    def submit(self, name: str, prompt: int, max_tokens: int) -> None:
        self.b.submit(name, prompt, max_tokens)
        self.issue()

    def tick(self) -> None:
        passed = list(self.passed)
        for stage, at in enumerate(passed):
            if stage:
                may = at < passed[stage - 1]
            else:
                may = at < len(self.plans) and self.plans[at].depends_on < passed[-1]
            self.passed[stage] += may
        self.ticks += 1
        if self.passed[-1] > passed[-1]:
            issued = self.b.core.steps.in_flight[0]
            for line in self.b.done(issued.plan.step_id, *(7,) * len(issued.samplers)):
                if line.startswith("s token"):
                    name = line.split()[2]
                    self.said[name] = self.said.get(name, 0) + 1
            self.issue()

    def ticks_to_first_token(self, name: str) -> int:
        begun = self.ticks
        while name not in self.said:
            self.tick()
        return self.ticks - begun


def make(bench: MakeBench, stages: int, **bounds: Any) -> Bench:
    sizes = {"max_running": 65, "max_step_tokens": CHUNK + 65, "max_waiting": 65, "pages": 1 << 14}
    return bench(pp=stages, chunk_size=CHUNK, max_model_len=1 << 16, **(sizes | bounds))


@pytest.mark.parametrize("stages", range(1, 9))
def test_a_prompt_alone_takes_chunks_plus_stages_minus_one(bench: MakeBench, stages: int) -> None:
    for chunks in range(1, 65):
        line = Pipeline(make(bench, stages))
        line.submit("long", CHUNK * chunks, max_tokens=2)
        assert line.ticks_to_first_token("long") == chunks + stages - 1


@pytest.mark.parametrize("stages", [1, 2, 4, 8])
@pytest.mark.parametrize("chunks", [1, 4, 33])
def test_amid_running_requests_it_takes_as_long_but_for_a_constant(
    bench: MakeBench, stages: int, chunks: int
) -> None:
    line = Pipeline(make(bench, stages))
    for at in range(64):
        line.submit(f"r{at}", 3, max_tokens=10_000)
    while len(line.said) < 64 or line.ticks < 40:
        line.tick()
    line.submit("long", CHUNK * chunks, max_tokens=2)
    before = dict(line.said)
    ticks = line.ticks_to_first_token("long")
    assert 0 <= ticks - (chunks + stages - 1) <= 2  # of steps that were in flight already
    gained = [line.said[name] - before[name] for name in before]
    assert min(gained) >= ticks // stages - 1  # and the others go on as before


@pytest.mark.parametrize("stages", [1, 2, 4])
def test_separate_steps_take_turns_with_the_running_ones(bench: MakeBench, stages: int) -> None:
    chunks = 12
    line = Pipeline(make(bench, stages, chunked_prefill="separate"))
    for at in range(64):
        line.submit(f"r{at}", 3, max_tokens=10_000)
    while len(line.said) < 64 or line.ticks < 40:
        line.tick()
    line.submit("long", CHUNK * chunks, max_tokens=2)
    before = dict(line.said)
    ticks = line.ticks_to_first_token("long")
    assert 0 <= ticks - (2 * chunks + stages - 1) <= 2
    gained = [line.said[name] - before[name] for name in before]
    assert min(gained) >= ticks // max(stages, 2) - 1
