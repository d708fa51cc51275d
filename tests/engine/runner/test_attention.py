"""What a step's attention is given, and how often it is prepared."""

from pathlib import Path

import pytest
import torch
from pds_engine.messages import Admit, Row, Sampling, StepPlan
from pds_engine.runner.batch import build
from pds_engine.runner.tables import Tables
from pds_kernels.paged_attention import Attend, Geometry, Kernel, Prepare, dispatch
from pds_kernels.paged_attention.reference import make
from pds_kernels.plan import AttentionPlan
from runner_driver import Driver

GREEDY = Sampling(max_tokens=4, temperature=0.0)
NULL = 99


def planned(*rows: tuple[int, int, tuple[int, ...]], padded: int = 0) -> AttentionPlan:
    """The attention of a step with a request per (start, length, pages), in slots 0, 1, …; a page
    holds four tokens."""
    tables = Tables(len(rows), 5, 4, 50, NULL, torch.device("cpu"))
    for slot, (start, length, pages) in enumerate(rows):
        tables.admit(
            Admit(
                slot=slot,
                gen=0,
                prompt_ids=(7,) * (start + length),
                output_ids=(),
                sampling=GREEDY,
                seed=0,
                pages=pages,
            )
        )
    step = StepPlan(
        step_id=0,
        rows=tuple(
            Row(slot=slot, gen=0, start=start, length=length)
            for slot, (start, length, _) in enumerate(rows)
        ),
        expects_output=False,
        depends_on=-1,
        padded_tokens=padded,
    )
    return build(step, tables, padded).attention


def test_the_plan_of_a_mixed_step() -> None:
    """The chunk comes first, then those of one token, the shorter context before the longer."""
    plan = planned((8, 1, (20, 21, 22)), (3, 3, (30, 31)), (4, 1, (40, 41)), padded=8)
    assert plan.seq_lens_host == (6, 5, 9)
    assert plan.cu_seqlens_q_host == (0, 3, 4, 5)
    assert plan.page_table.tolist() == [[30, 31, NULL], [40, 41, NULL], [20, 21, 22]]
    assert plan.write_slots.tolist() == [123, 124, 125, 164, 88, *[NULL * 4] * 3]


def test_the_device_is_told_the_same_as_the_host() -> None:
    plan = planned((8, 1, (20, 21, 22)), (3, 3, (30, 31)))
    assert tuple(plan.seq_lens.tolist()) == plan.seq_lens_host
    assert tuple(plan.cu_seqlens_q.tolist()) == plan.cu_seqlens_q_host
    metadata = (plan.page_table, plan.seq_lens, plan.cu_seqlens_q)
    assert {each.dtype for each in metadata} == {torch.int32}
    assert plan.write_slots.dtype == torch.int64


def test_pages_that_are_not_reached_yet_are_not_named() -> None:
    """A request's later pages hold whatever was there before."""
    plan = planned((0, 2, (20, 21, 22)), (0, 6, (30, 31)))
    assert plan.page_table.tolist() == [[20, NULL], [30, 31]]


def test_a_plan_is_prepared_once_a_step(
    driver: type[Driver], qwen3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the seam, as any kernel would be: three layers attend by what was prepared once."""
    calls: list[str] = []
    asked: list[Geometry] = []

    def counting(geometry: Geometry) -> Prepare:
        asked.append(geometry)
        reference = make(geometry)

        def prepare(plan: AttentionPlan) -> Attend:
            calls.append("prepare")
            attend = reference(plan)

            def counted(*layer: torch.Tensor) -> torch.Tensor:
                calls.append("attend")
                return attend(*layer)

            return counted

        return prepare

    counted = Kernel("counting", serves=lambda _: True, make=counting)
    monkeypatch.setattr(dispatch, "KERNELS", (counted, *dispatch.KERNELS))
    runner = driver(qwen3)
    assert runner.runner.attention == "counting"
    runner.run([tuple(range(20))], Sampling(max_tokens=2, temperature=0.0))
    assert calls == ["prepare", "attend", "attend", "attend"] * 2
    float32 = torch.float32
    assert asked == [Geometry(4, 2, 32, 16, float32, float32, torch.device("cpu"))]
