"""A mixture split by columns and one split by experts give what one rank does by itself."""

from collections.abc import Sequence

import pytest
import torch
from grid import on_grid
from pds_engine.config import ParallelConfig
from pds_engine.models.mixture import Mixture
from pds_engine.models.weights import DenseWeights, ExpertWeights
from pds_engine.parallel.collectives import ALONE, Collectives
from pds_engine.parallel.layout import ModelPart, part
from pds_engine.parallel.parts import Parts
from pds_engine.spec import (
    DecoderSpec,
    ExpertsSpec,
    GateSpec,
    GqaSpec,
    LayerSpec,
    RopeSpec,
)

HIDDEN, COLUMNS, SHARED = 16, 12, 24
NONE = torch.empty(0)
CPU = torch.device("cpu")


def mixture(experts: int, top_k: int = 2, *, shared: bool = True, bias: bool = False):
    return ExpertsSpec(
        experts=experts,
        top_k=top_k,
        columns=COLUMNS,
        gate=GateSpec(renormalise=True, bias=bias),
        shared_columns=SHARED if shared else 0,
        shared_gate=shared,
        bias=bias,
    )


def weights(spec: ExpertsSpec, router_bias: Sequence[float] = ()) -> ExpertWeights:
    """Of the whole mixture."""
    source = torch.Generator().manual_seed(11)

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=source)

    e = spec.experts
    shared = DenseWeights(NONE, NONE)
    if spec.shared_columns:
        shared = DenseWeights(made(2 * SHARED, HIDDEN), made(HIDDEN, SHARED))
    return ExpertWeights(
        router=made(e, HIDDEN),
        router_bias=torch.tensor(router_bias),
        correction=NONE,
        gate_up=made(e, 2 * COLUMNS, HIDDEN),
        gate_up_bias=made(e, 2 * COLUMNS) if spec.bias else NONE,
        down=made(e, HIDDEN, COLUMNS),
        down_bias=made(e, HIDDEN) if spec.bias else NONE,
        shared=shared,
        shared_gate=made(1, HIDDEN) if spec.shared_gate else NONE,
    )


def own(w: ExpertWeights, spec: ExpertsSpec, mine: ModelPart) -> ExpertWeights:
    """A rank's part of them, as the loader cuts it."""
    held, columns = list(mine.experts(spec.experts)), list(mine.expert_columns(COLUMNS))
    both = [*columns, *(COLUMNS + c for c in columns)]
    shared, gate_up_bias, down_bias = w.shared, w.gate_up_bias, w.down_bias
    if spec.shared_columns:
        block = list(mine.expert_columns(SHARED))
        rows = [*block, *(SHARED + c for c in block)]
        shared = DenseWeights(shared.gate_up[rows], shared.down[:, block])
    if spec.bias:
        gate_up_bias, down_bias = gate_up_bias[held][:, both], down_bias[held]
        if mine.stage_rank and not mine.ep:
            down_bias = torch.zeros_like(down_bias)
    return w._replace(
        gate_up=w.gate_up[held][:, both],
        down=w.down[held][:, :, columns],
        gate_up_bias=gate_up_bias,
        down_bias=down_bias,
        shared=shared,
    )


def part_of(spec: ExpertsSpec, tp: int, dp: int, rank: int, ep: bool) -> ModelPart:
    attention = GqaSpec(heads=4, kv_heads=4, head_dim=4, rope=RopeSpec(1e4, 4), scale=0.5)
    decoder = DecoderSpec(
        architecture="",
        vocab=8,
        hidden=HIDDEN,
        layers=(LayerSpec(attention=attention, feed=spec),),
        norm_eps=1e-6,
        tied=False,
        max_position=8,
    )
    return part(decoder, ParallelConfig(tp=tp, dp=dp, ep=ep), rank)


class Counted(Collectives):
    """Collectives that note which calls are made."""

    def __init__(self, inner: Collectives) -> None:
        self.inner, self.rank, self.size = inner, inner.rank, inner.size
        self.calls: list[str] = []

    def gather_parts(self, x, sizes):
        self.calls.append("gather_parts")
        return self.inner.gather_parts(x, sizes)

    def reduce_scatter(self, x, sizes):
        self.calls.append("reduce_scatter")
        return self.inner.reduce_scatter(x, sizes)

    def all_to_all(self, x, give, take):
        self.calls.append("all_to_all")
        return self.inner.all_to_all(x, give, take)


def alone(spec: ExpertsSpec, w: ExpertWeights, x: torch.Tensor) -> torch.Tensor:
    mine = part_of(spec, 1, 1, 0, False)
    sizes = Parts((len(x),), (len(x),))
    return Mixture(spec, mine, HIDDEN, x.dtype, CPU)(x, w, ALONE, sizes)


def check(spec, sizes, ep, router_bias=(), dtype=torch.float32):
    """`sizes`: tokens of each rank."""
    ranks, w = len(sizes), weights(spec, router_bias)
    w = ExpertWeights(*(one.to(dtype) if isinstance(one, torch.Tensor) else one for one in w))
    w = w._replace(shared=DenseWeights(*(each.to(dtype) for each in w.shared)))
    x = torch.randn(sum(sizes), HIDDEN, generator=torch.Generator().manual_seed(5)).to(dtype)
    chosen = [0] * spec.experts

    def work(_: Collectives, stage: Collectives) -> tuple[torch.Tensor, list[str]]:
        mine = part_of(spec, ranks, 1, stage.rank, ep)
        counted = Counted(stage)
        block = Mixture(spec, mine, HIDDEN, dtype, CPU)
        tokens = x.split(sizes)[stage.rank]
        made = block(tokens, own(w, spec, mine), counted, Parts(sizes, sizes))
        assert made.dtype == dtype
        for expert in block.route(tokens, w)[1].flatten().tolist():
            chosen[expert] += 1
        return made, counted.calls

    found = on_grid(ranks, 1, work)
    calls = ["all_to_all"] * 3 if ep else ["gather_parts", "reduce_scatter"]
    assert [each for _, each in found] == [calls] * ranks
    together = torch.cat([made for made, _ in found])
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(together, alone(spec, w, x), rtol=tolerance, atol=tolerance * 100)
    return chosen


@pytest.mark.parametrize("ep", [False, True], ids=["by columns", "whole"])
@pytest.mark.parametrize(
    "sizes", [(5, 5), (1, 0), (0, 3), (2, 2, 2, 2), (0, 0, 7, 0), (3, 1, 0, 4)], ids=str
)
def test_a_split_mixture_is_the_whole_one(sizes, ep):
    check(mixture(8), sizes, ep)


@pytest.mark.parametrize("ep", [False, True], ids=["by columns", "whole"])
def test_without_a_shared_block_and_with_biases(ep):
    check(mixture(8, shared=False), (3, 4), ep)
    check(mixture(8, bias=True), (3, 4), ep, [0.5] * 8)


def test_experts_that_ranks_cannot_share_evenly():
    check(mixture(7, 3), (4, 4), True)
    check(mixture(5, 3), (4, 1, 4, 4), True)


def test_more_ranks_than_experts():
    """The last rank has none, and tokens of its own."""
    check(mixture(3), (2, 2, 2, 5), True)
    check(mixture(3), (0, 0, 0, 1), True)


@pytest.mark.parametrize("ep", [False, True], ids=["by columns", "whole"])
def test_an_expert_that_nobody_chooses_and_one_that_all_do(ep):
    never, always = 2, 5
    bias = [0.0] * 8
    bias[never], bias[always] = -1e3, 1e3
    chosen = check(mixture(8, bias=True), (6, 3), ep, bias)
    assert (chosen[never], chosen[always]) == (0, 9)


def test_a_rank_to_which_nobody_sends_anything():
    bias = [0.0] * 4 + [-1e3] * 4
    chosen = check(mixture(8, bias=True), (6, 3), True, bias)
    assert sum(chosen[4:]) == 0


def test_in_bfloat16():
    check(mixture(8), (5, 2), True, dtype=torch.bfloat16)


def test_expert_parallelism_on_one_rank_is_the_plain_path():
    assert not part_of(mixture(8), 1, 1, 0, True).ep


def test_a_token_of_no_number_stays_by_itself():
    """Whatever its experts are, other tokens' results are what they were."""
    spec, sizes = mixture(8), (3, 3)
    w = weights(spec)
    x = torch.randn(6, HIDDEN, generator=torch.Generator().manual_seed(5))
    spoiled = x.clone()
    spoiled[1] = float("nan")

    def work(_: Collectives, stage: Collectives) -> torch.Tensor:
        mine = part_of(spec, 2, 1, stage.rank, True)
        block = Mixture(spec, mine, HIDDEN, torch.float32, CPU)
        tokens = spoiled.split(sizes)[stage.rank]
        return block(tokens, own(w, spec, mine), stage, Parts(sizes, sizes))

    found, expected = torch.cat(on_grid(2, 1, work)), alone(spec, w, x)
    assert found[1].isnan().all()
    kept = [0, 2, 3, 4, 5]
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-5, atol=1e-3)
