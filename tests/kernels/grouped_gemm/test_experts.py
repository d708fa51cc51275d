"""Experts against those of transformers, and split over ranks in every way."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from ahead import Compile, keys
from pds_kernels.activation import Activation
from pds_kernels.grouped_gemm import (
    ExpertWeights,
    Feed,
    Geometry,
    Kernel,
    choose,
    experts,
    permute,
    unpermute,
)
from pds_kernels.grouped_gemm.dispatch import KERNELS
from pds_kernels.grouped_gemm.reference import feed as definition
from pds_kernels.grouped_gemm.tuning import tile, tiles
from pds_kernels.launching import Launch, recording
from poison import poisoned
from serving_kernels import served
from torch import Tensor
from transformers import GptOssConfig, Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

EXPERTS, HIDDEN, COLUMNS, CHOICES = 5, 12, 7, 3
GEOMETRY = Geometry(EXPERTS, HIDDEN, COLUMNS, "silu", torch.float32, torch.device("cpu"))


def geometry(device: torch.device) -> Geometry:
    return replace(GEOMETRY, device=device)


def layer(bias: bool = False) -> ExpertWeights:
    torch.manual_seed(0)
    return ExpertWeights(
        torch.randn(EXPERTS, 2 * COLUMNS, HIDDEN) / 4,
        torch.randn(EXPERTS, HIDDEN, COLUMNS) / 4,
        torch.randn(EXPERTS, 2 * COLUMNS) if bias else None,
        torch.randn(EXPERTS, HIDDEN) if bias else None,
    )


def moved(weights: ExpertWeights, device: str) -> ExpertWeights:
    return ExpertWeights(*(None if each is None else each.to(device) for each in weights))


def routed(tokens: int, choices: int = CHOICES) -> tuple[Tensor, Tensor, Tensor]:
    """x, ids, weights: each token chooses experts that differ."""
    torch.manual_seed(tokens)
    ids = torch.rand(tokens, EXPERTS).argsort(1)[:, :choices]
    return torch.randn(tokens, HIDDEN), ids, torch.rand(tokens, choices)


def run(
    kernel: Kernel, device: str, x: Tensor, ids: Tensor, w: Tensor | None, of: ExpertWeights
) -> Tensor:
    feed = kernel.make(geometry(torch.device(device)))
    weights = None if w is None else w.to(device)
    return experts(feed, x.to(device), ids.to(device), weights, moved(of, device)).cpu()


@pytest.mark.parametrize("tokens", [0, 1, 2, 33])
@pytest.mark.parametrize("act", ["silu", "gelu_pytorch_tanh"])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_gated_ones_against_transformers(
    kernel: Kernel, device: str, act: str, tokens: int
) -> None:
    config = Qwen3MoeConfig(
        hidden_size=HIDDEN, moe_intermediate_size=COLUMNS, num_experts=EXPERTS, hidden_act=act
    )
    config._experts_implementation = "eager"
    weights, (x, ids, w) = layer(), routed(tokens)
    theirs = Qwen3MoeExperts(config)
    theirs.load_state_dict({"gate_up_proj": weights.gate_up, "down_proj": weights.down})
    activation = "silu" if act == "silu" else "gelu_tanh"
    feed = kernel.make(replace(geometry(torch.device(device)), activation=activation))
    out = experts(feed, x.to(device), ids.to(device), w.to(device), moved(weights, device))
    with torch.inference_mode():
        torch.testing.assert_close(out.cpu(), theirs(x, ids, w), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tokens", [0, 1, 33])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_clamped_ones_against_transformers(kernel: Kernel, device: str, tokens: int) -> None:
    """Their weights are transposed, and gate and up alternate."""
    config = GptOssConfig(hidden_size=HIDDEN, intermediate_size=COLUMNS, num_local_experts=EXPERTS)
    config._experts_implementation = "eager"
    weights, (x, ids, w) = layer(bias=True), routed(tokens)
    weights = weights._replace(gate_up=weights.gate_up * 8)  # so that some are clamped
    theirs = GptOssExperts(config)
    woven = [
        torch.stack(part.chunk(2, 1), 2).flatten(1, 2)
        for part in (weights.gate_up, weights.gate_up_bias)
    ]
    theirs.load_state_dict(
        {
            "gate_up_proj": woven[0].transpose(1, 2),
            "gate_up_proj_bias": woven[1],
            "down_proj": weights.down.transpose(1, 2),
            "down_proj_bias": weights.down_bias,
        }
    )
    feed = kernel.make(replace(geometry(torch.device(device)), activation="clamped"))
    out = experts(feed, x.to(device), ids.to(device), w.to(device), moved(weights, device))
    with torch.inference_mode():
        torch.testing.assert_close(out.cpu(), theirs(x, ids, w), rtol=1e-5, atol=1e-5)


def naive(x: Tensor, ids: Tensor, w: Tensor, of: ExpertWeights) -> Tensor:
    """Token by token, choice by choice, in float64."""
    out = torch.zeros(len(x), HIDDEN, dtype=torch.float64)
    for token in range(len(x)):
        for choice, expert in enumerate(ids[token].tolist()):
            gate, up = (of.gate_up[expert].double() @ x[token].double()).chunk(2)
            fed = of.down[expert].double() @ (torch.nn.functional.silu(gate) * up)
            out[token] += w[token, choice].double() * fed
    return out


@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize("lone", [None, 0, EXPERTS - 1])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_one_expert_may_have_all_the_work(
    kernel: Kernel, device: str, lone: int | None, tokens: int
) -> None:
    """What has no rows is not read: its weights are NaN."""
    x, ids, w = routed(tokens, 1)
    weights = layer()
    if lone is not None:
        ids.fill_(lone)
        for part in (weights.gate_up, weights.down):
            part[[expert for expert in range(EXPERTS) if expert != lone]] = float("nan")
    out = run(kernel, device, x, ids, w, weights)
    torch.testing.assert_close(out.double(), naive(x, ids, w, weights), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_without_weights_all_count_the_same(kernel: Kernel, device: str) -> None:
    x, ids, _ = routed(9)
    out = run(kernel, device, x, ids, None, layer())
    ones = run(kernel, device, x, ids, torch.ones(9, CHOICES), layer())
    assert torch.equal(out, ones)


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_experts_that_are_elsewhere_give_nothing(kernel: Kernel, device: str, ranks: int) -> None:
    """Each rank has the tokens and some of the experts; the sum over ranks is the whole."""
    x, ids, w = routed(21)
    weights, total = layer(), torch.zeros(21, HIDDEN)
    bounds = [EXPERTS * rank // ranks for rank in range(ranks + 1)]
    for first, end in pairwise(bounds):
        mine = ExpertWeights(weights.gate_up[first:end], weights.down[first:end])
        here = torch.where((ids >= first) & (ids < end), ids - first, end - first)
        total += run(kernel, device, x, here, w, mine)
    whole = run(kernel, device, x, ids, w, weights)
    torch.testing.assert_close(total, whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_rows_may_be_computed_where_their_experts_are(
    kernel: Kernel, device: str, ranks: int
) -> None:
    """The middle alone, as expert parallelism calls it: rows go out and come back. The sums have
    the same bits as on one rank."""
    x, ids, w = (each.to(device) for each in routed(21))
    weights = moved(layer(), device)
    feed: Feed = kernel.make(geometry(torch.device(device)))
    whole = permute(x, ids, EXPERTS)
    bounds = [EXPERTS * rank // ranks for rank in range(ranks + 1)]
    parts, starts = [], [0, *whole.counts.cumsum(0).tolist()]
    for first, end in pairwise(bounds):
        mine = ExpertWeights(weights.gate_up[first:end], weights.down[first:end])
        parts.append(feed(whole.rows[starts[first] : starts[end]], whole.counts[first:end], mine))
    out = unpermute(torch.cat(parts), whole.order, CHOICES, w)
    assert torch.equal(out, experts(feed, x, ids, w, weights))


def test_rows_are_in_order_of_experts_and_then_of_tokens() -> None:
    x = torch.arange(4.0).unsqueeze(1)
    found = permute(x, torch.tensor([[2, 0], [3, 2], [0, 2], [3, 3]]), 3)
    assert found.rows.flatten().tolist() == [0, 2, 0, 1, 2, 1, 3, 3]
    assert found.counts.tolist() == [2, 0, 3]
    assert found.order.tolist() == [1, 4, 0, 3, 5, 2, 6, 7]


def test_what_was_permuted_comes_back_in_its_place() -> None:
    x, ids, w = routed(11)
    there = permute(x, ids, EXPERTS)
    back = unpermute(there.rows, there.order, CHOICES, w)
    torch.testing.assert_close(back, x * w.sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("order", "great", "dtype", "expected"),
    [
        ([2, 0, 1], 2.0**25, torch.float32, 1.0),
        ([0, 1, 2], 2.0**25, torch.float32, 0.0),  # the one is lost beside the great ones
        ([0, 1, 2], 2.0**9, torch.bfloat16, 1.0),  # as it were in bfloat16
    ],
)
def test_a_token_sums_its_choices_in_order_and_in_float32(
    order: list[int], great: float, dtype: torch.dtype, expected: float
) -> None:
    rows = torch.tensor([[1.0], [great], [-great]], dtype=dtype)
    assert unpermute(rows, torch.tensor(order), 3, None).tolist() == [[expected]]


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_rows_of_no_expert_are_not_read(kernel: Kernel, device: str) -> None:
    feed = kernel.make(geometry(torch.device(device)))
    rows = torch.full((6, HIDDEN), float("nan"), device=device)
    rows[:2] = 1
    counts = torch.tensor([0, 2, 0, 0, 0], device=device)
    out = feed(rows, counts, moved(layer(), device))
    assert out[:2].isfinite().all() and (out[2:] == 0).all()


@pytest.mark.parametrize("activation", ["silu", "clamped"])
@pytest.mark.parametrize(
    ("hidden", "columns", "counts", "spare"),
    [
        (1, 1, [1], 0),
        (33, 31, [0, 1, 15, 16, 17, 0, 33], 5),
        (32, 65, [31, 0, 32, 0], 17),
        (65, 32, [0, 0, 90], 0),  # so many rows an expert that the tiles are others
        (12, 7, [0, 0], 3),
    ],
)
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_against_the_definition(
    kernel: Kernel,
    device: str,
    hidden: int,
    columns: int,
    counts: list[int],
    spare: int,
    activation: Activation,
) -> None:
    """Tiles may end anywhere, and what lies beside the rows is not read."""
    torch.manual_seed(0)
    experts_here, held = len(counts), sum(counts)
    weights = ExpertWeights(
        torch.randn(experts_here, 2 * columns, hidden) / 4,
        torch.randn(experts_here, hidden, columns) / 4,
        torch.randn(experts_here, 2 * columns),
        torch.randn(experts_here, hidden),
    )
    wide = torch.full((held + spare, hidden + 3), float("nan"))
    wide[:held, :hidden] = torch.randn(held, hidden)
    rule = Geometry(experts_here, hidden, columns, activation, torch.float32, torch.device(device))
    feed = kernel.make(rule)
    with poisoned():
        out = feed(
            wide.to(device)[:, :hidden],
            torch.tensor(counts, device=device),
            moved(weights, device),
        )
    expected = definition(rule, wide[:, :hidden], torch.tensor(counts), weights)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh", "clamped"])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_row_gone_wrong_harms_no_other_and_says_so(
    kernel: Kernel, device: str, activation: Activation
) -> None:
    feed = kernel.make(replace(geometry(torch.device(device)), activation=activation))
    rows = torch.randn(6, HIDDEN, device=device)
    counts = torch.tensor([0, 4, 0, 0, 2], device=device)
    healthy = feed(rows, counts, moved(layer(), device))
    rows[2] = float("nan")
    out = feed(rows, counts, moved(layer(), device))
    others = [0, 1, 3, 4, 5]
    assert out[2].isnan().all() and torch.equal(out[others], healthy[others])


@pytest.mark.parametrize("rows", [[1], [0, 17, 130], [40] * 8, [500, 3, 300]])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry, "cuda"))
def test_in_bfloat16_on_a_device(kernel: Kernel, device: str, rows: list[int]) -> None:
    """The interpreter multiplies bfloat16 wrongly. The last three rows are nobody's."""
    torch.manual_seed(0)
    experts_here, count = len(rows), sum(rows)
    drawn = (
        torch.randn(experts_here, 2 * 384, 512) / 16,
        torch.randn(experts_here, 512, 384) / 16,
        torch.randn(count + 3, 512),
    )
    gate_up, down, x = (each.to(device).bfloat16() for each in drawn)
    counts = torch.tensor(rows, device=device)
    rule = Geometry(experts_here, 512, 384, "silu", x.dtype, x.device)
    out = kernel.make(rule)(x, counts, ExpertWeights(gate_up, down)).float()
    single = replace(rule, dtype=torch.float32)
    wide = ExpertWeights(gate_up.float(), down.float())
    expected = definition(single, x.float(), counts, wide)
    assert (out - expected).norm() < 1e-2 * expected.norm()
    assert (out[count:] == 0).all()


META = torch.device("meta")
REAL = {
    "qwen3-30b-a3b": Geometry(128, 2048, 768, "silu", torch.bfloat16, META),
    "gpt-oss-20b": Geometry(32, 2880, 2880, "clamped", torch.bfloat16, META),
}


def launched(rule: Geometry, count: int) -> list[Launch]:
    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, dtype=rule.dtype, device=META)

    biased = rule.activation == "clamped"
    weights = ExpertWeights(
        empty(rule.experts, 2 * rule.columns, rule.hidden),
        empty(rule.experts, rule.hidden, rule.columns),
        empty(rule.experts, 2 * rule.columns) if biased else None,
        empty(rule.experts, rule.hidden) if biased else None,
    )
    counts = torch.empty(rule.experts, dtype=torch.int64, device=META)
    with recording() as launches:
        choose(rule).make(rule)(empty(count, rule.hidden), counts, weights)
    return launches


@pytest.mark.parametrize("model", REAL)
def test_compiles_for_sm_90(hopper: Compile, model: str) -> None:
    launches = launched(REAL[model], 1)
    once = {(each.function, each.constants): each for each in launches}
    assert {each.stack for each in hopper(list(once.values()))} == {0}


def test_a_plan_has_the_variants_for_all_numbers_of_rows() -> None:
    half = torch.bfloat16
    assert {tile(half, 8, rows) for rows in range(1, 2000)} == set(tiles(half))
    made = [each for each in launched(REAL["gpt-oss-20b"], 1) if each.function == "down"]
    assert [dict(each.constants)["block_t"] for each in made] == [16, 64, 128]


def test_the_number_of_rows_makes_no_variant() -> None:
    launches = [each for count in (1, 16, 1000) for each in launched(REAL["gpt-oss-20b"], count)]
    found = [each["source"] + each["variant"] for each in keys(launches)[:-1]]
    once = len(found) // 3
    assert found[:once] == found[once : 2 * once] == found[2 * once :]
    assert len(set(found)) == 7  # one table, and both products of three tiles
