"""The first of two stages, on the real Runner: no step computes from a token that has not come."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pds_engine.config import EngineConfig
from pds_engine.errors import ProtocolError
from pds_engine.messages import Admit, Release, Row, Sampling, StepPlan
from pds_engine.models.loader import load
from pds_engine.parallel.collectives import ALONE
from pds_engine.parallel.stage import Stage, StagePlace
from pds_engine.runner.runner import Runner

PROMPT = (3, 1, 4, 1, 5)


class AnsweredExchange:
    """An exchange whose receives are the steps' ids: the test answers with their tokens."""

    def receive_output(self, plan: StepPlan) -> int:
        return plan.step_id

    def send_hidden(self, plan: StepPlan, hidden: torch.Tensor) -> int:
        return -1


class FirstStage:
    """Stage 0 of 2 with one request in slot 0; `tokens` answers its receives."""

    def __init__(self, path: Path) -> None:
        config = EngineConfig.model_validate(
            {"model": {"path": path, "dtype": "float32"}, "max_model_len": 64}
            | {"parallelism": {"pp": 2}}
        )
        decoder = load(config, 0, torch.device("cpu"), ALONE)
        shape = (5, 2, len(decoder.part.kv_heads), 16, decoder.spec.kv.head_dim)
        pools = [torch.zeros(shape) for _ in decoder.part.layers]
        self.runner = Runner(config, decoder, [(pool[:, 0], pool[:, 1]) for pool in pools])
        self.admit(gen=1)
        self.stage: Stage[torch.Tensor, int] = Stage(
            StagePlace(0, 2), self.runner, AnsweredExchange()
        )  # type: ignore[arg-type]
        self.tokens: dict[int, tuple[int, ...]] = {}

    def admit(self, gen: int) -> None:
        self.runner.admit(
            Admit(
                slot=0,
                gen=gen,
                prompt_ids=PROMPT,
                output_ids=(),
                sampling=Sampling(max_tokens=9),
                seed=0,
                pages=(0,),
            )
        )

    def step(self, number: int, start: int, length: int = 1, gen: int = 1, **plan: Any) -> None:
        row = Row(slot=0, gen=gen, start=start, length=length, samples=True)
        made = StepPlan(
            **{"step_id": number, "expects_output": True, "depends_on": -1, **plan},
            rows=(row,),
            padded_tokens=length,
        )
        step, answer = self.stage.step(made), None
        try:
            while True:
                awaited = step.send(answer)
                answer = self.tokens.get(awaited)
        except StopIteration:
            return


@pytest.fixture
def first(llama: Path) -> Callable[[], FirstStage]:
    return lambda: FirstStage(llama)


def test_a_step_whose_tokens_have_come_computes(first: Callable[[], FirstStage]) -> None:
    stage = first()
    stage.step(0, 0, length=5)
    stage.tokens = {0: (7,), 1: (8,)}
    stage.step(1, 5, depends_on=0)
    stage.step(2, 6, depends_on=1, expects_output=False)
    stage.runner.release(Release(slot=0, gen=1, after_step=2))
    assert stage.runner.unneeded == 0


def test_a_step_that_depends_on_too_little_does_not(first: Callable[[], FirstStage]) -> None:
    stage = first()
    stage.step(0, 0, length=5)
    stage.tokens = {0: (7,), 1: (8,)}
    stage.step(1, 5, depends_on=0)
    with pytest.raises(
        ProtocolError,
        match=r"^step 2, which depends on step 0, reads the token of slot 0 at position 6, and the "
        r"first stage does not know it: .* as the output of step 1 has not been received$",
    ):
        stage.step(2, 6, depends_on=0)


def test_an_output_that_no_step_reads_is_counted(first: Callable[[], FirstStage]) -> None:
    """It was sent for a request that was over before its next token was planned."""
    stage = first()
    stage.tokens = {0: (7,), 1: (8,)}
    stage.step(0, 0, length=5)
    stage.step(1, 5, depends_on=0)
    stage.runner.release(Release(slot=0, gen=1, after_step=1))
    stage.admit(gen=2)
    assert stage.runner.unneeded == 0
    stage.step(2, 0, length=5, gen=2, depends_on=1)
    assert stage.runner.unneeded == 1
