"""Stages of several dp ranks, each rank a process on gloo: plans of all dp ranks, and no scheduler.

What runs here is what a worker wires: groups, exchange, stage and runner.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from dp_driver import Load, run
from pds_engine.parallel.collectives import ALONE, Collectives
from pds_engine.parallel.groups import make
from pds_engine.parallel.layout import Numbering
from pds_engine.parallel.stage import Stage, StagePlace
from pds_engine.worker.loop import drive
from pds_engine.worker.process import make_exchange
from pds_engine.worker.watchdog import Activity
from runner_driver import Driver

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
OUTPUT = 5


def prompts(seed: int, *lengths: int) -> list[list[int]]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 200, (n,), generator=source).tolist() for n in lengths]


def loads() -> tuple[Load, Load]:
    """The second dp rank is idle at first, and at last the first one is."""
    return (
        Load(prompts(1, 70, 9, 1), chunk=32, budget=50),
        Load(prompts(2, 33, 40), arrives=2, chunk=16),
    )


def answers(collectives: Collectives, path: str, split: dict[str, int], even: bool) -> Any:
    """This rank's answers, and how many hidden states it has sent, received and sampled."""
    numbering, rank = Numbering(split["tp"], split["dp"]), collectives.rank
    place = numbering.place(rank)
    keys = {"parallelism": split, "max_model_len": 256}
    config = Driver.configured(Path(path), **keys)
    groups = make(config, rank, CPU, timedelta(seconds=60))
    tp = ALONE if groups.tp is None else Collectives(groups.tp, place.tp, numbering.tp)
    stage_rank = place.dp * numbering.tp + place.tp
    assert groups.stage is not None
    driver = Driver(
        Path(path),
        collectives=tp,
        stage=Collectives(groups.stage, stage_rank, numbering.width),
        pp_rank=place.stage,
        **keys,
    )
    exchange = make_exchange(config, driver.decoder, groups, rank, CPU)
    stage = Stage(StagePlace(place.stage, split["pp"]), driver.runner, exchange)
    activity = Activity(rank)
    found = run(
        driver,
        loads(),
        OUTPUT,
        even=even,
        execute=lambda plan: drive(stage.step(plan), activity),
    )
    return found, exchange.counts.hidden_sent, exchange.counts.hidden_received


@pytest.mark.parametrize("even", [False, True], ids=["as they are", "even"])
def test_two_stages_of_two_dp_ranks(even, model, greedy, ranks):
    split = {"pp": 2, "tp": 1, "dp": 2}
    found = ranks(answers, 4, path=str(model), split=split, even=even)
    expected = [[greedy(prompt, OUTPUT) for prompt in load.prompts] for load in loads()]
    assert [each[0] for each in found] == [None, None, *expected]
    (steps,) = {each[1] for each in found[:2]}
    assert steps > 6
    assert [each[1:] for each in found] == [[steps, 0], [steps, 0], [0, steps], [0, steps]]


@pytest.mark.parametrize("pp", [1, 2])
def test_dp_ranks_of_two_shards(pp, model, greedy, ranks):
    split = {"pp": pp, "tp": 2, "dp": 2}
    found = ranks(answers, 4 * pp, path=str(model), split=split, even=False)
    expected = [[greedy(prompt, OUTPUT) for prompt in load.prompts] for load in loads()]
    assert [each[0] for each in found[-4:]] == [expected[0]] * 2 + [expected[1]] * 2
