"""Experts whose weights are in FP8: against the definition, and the definition against FP8."""

from dataclasses import replace

import pytest
import torch
from ahead import Compile
from pds_kernels.fp8 import Fp8Weight, dequantise, quantise_activation
from pds_kernels.grouped_gemm import ExpertWeights, Geometry, Kernel, Stack, choose, reading
from pds_kernels.grouped_gemm.dispatch import KERNELS
from pds_kernels.grouped_gemm.reference import feed as definition
from pds_kernels.grouped_gemm.tuning import tile, tiles
from pds_kernels.launching import Launch, recording
from pds_kernels.targets import gpu
from poison import poisoned
from serving_kernels import served
from torch import Tensor

FP8 = torch.float8_e4m3fn
META = torch.device("meta")
CPU = torch.device("cpu")
GEOMETRY = Geometry(3, 136, 96, "silu", torch.float32, CPU, block=(48, 96))


def geometry(device: torch.device) -> Geometry:
    return replace(GEOMETRY, device=device)


def stack(block: tuple[int, int], *shape: int) -> Fp8Weight:
    """Of experts, rows and columns."""
    experts, rows, columns = shape
    scales = experts, -(-rows // block[0]), -(-columns // block[1])
    numbers = (torch.randn(shape) * 50).clamp(-448, 448).to(FP8)
    return Fp8Weight(numbers, (torch.rand(scales) + 0.5) / 512, block)


def layer(rule: Geometry, *, bias: bool = False) -> ExpertWeights:
    if rule.block is None:
        raise ValueError("of weights in FP8")
    torch.manual_seed(0)
    return ExpertWeights(
        stack(rule.block, rule.experts, 2 * rule.columns, rule.hidden),
        stack(rule.block, rule.experts, rule.hidden, rule.columns),
        torch.randn(rule.experts, 2 * rule.columns) if bias else None,
        torch.randn(rule.experts, rule.hidden) if bias else None,
    )


def moved(weights: ExpertWeights, device: torch.device) -> ExpertWeights:
    def there(one: Stack | None) -> Stack | None:
        if isinstance(one, Fp8Weight):
            return Fp8Weight(one.weight.to(device), one.scale.to(device), one.block)
        return None if one is None else one.to(device)

    return ExpertWeights(*map(there, weights))  # type: ignore[arg-type]


def plain(stored: Stack) -> Tensor:
    return dequantise(*stored, torch.float32) if isinstance(stored, Fp8Weight) else stored


@pytest.mark.parametrize(
    ("hidden", "columns", "block", "counts", "spare"),
    [
        (136, 48, (48, 96), [0, 1, 17], 5),  # 32 columns a step
        (130, 128, (128, 128), [3, 0, 2], 17),
        (64, 128, (64, 64), [70], 0),  # so many rows an expert that the tiles are others
        (160, 32, (32, 32), [0, 0], 3),
    ],
)
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_against_the_definition(
    kernel: Kernel,
    device: str,
    hidden: int,
    columns: int,
    block: tuple[int, int],
    counts: list[int],
    spare: int,
) -> None:
    """Tiles may end anywhere; what lies beside the rows, and what nothing has written, is NaN."""
    where, held = torch.device(device), sum(counts)
    rule = Geometry(len(counts), hidden, columns, "silu", torch.float32, where, block=block)
    weights = layer(rule, bias=True)
    wide = torch.full((held + spare, hidden + 3), float("nan"))
    wide[:held, :hidden] = torch.randn(held, hidden)
    feed = kernel.make(rule)
    with poisoned():
        out = feed(
            wide.to(where)[:, :hidden], torch.tensor(counts, device=where), moved(weights, where)
        ).cpu()
    expected = definition(rule, wide[:, :hidden], torch.tensor(counts), weights)
    # another order of sums may round a number of the middle otherwise, to FP8's next one
    assert (out - expected).norm() <= 2e-3 * expected.norm()
    assert (out[held:] == 0).all()


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_experts_are_off_by_the_rounding_of_rows_alone(kernel: Kernel, device: str) -> None:
    """Twice: before each product. An expert without rows is not read: its numbers are NaN."""
    where = torch.device(device)
    rule, weights = geometry(where), layer(GEOMETRY)
    for part in (weights.gate_up, weights.down):
        if isinstance(part, Fp8Weight):
            part.weight[1].view(torch.uint8).fill_(0x7F)
            part.scale[1] = float("nan")
    x, counts = torch.randn(8, rule.hidden), torch.tensor([5, 0, 3])
    out = kernel.make(rule)(x.to(where), counts.to(where), moved(weights, where)).cpu()
    whole = ExpertWeights(plain(weights.gate_up), plain(weights.down))
    exact = definition(replace(GEOMETRY, block=None), x, counts, whole)
    assert 0.005 * exact.norm() < (out - exact).norm() < 0.06 * exact.norm()


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_products_are_summed_block_by_block(kernel: Kernel, device: str) -> None:
    """Number by number, for one expert: each product of FP8 numbers has the scales of its block and
    of its row's group."""
    where = torch.device(device)
    rule, x = replace(geometry(where), experts=1), torch.randn(3, GEOMETRY.hidden)
    weights = layer(replace(GEOMETRY, experts=1))
    out = kernel.make(rule)(x.to(where), torch.tensor([3], device=where), moved(weights, where))

    def product(rows: Tensor, stored: Stack) -> Tensor:
        numbers, scales = quantise_activation(rows)
        total = torch.zeros(len(rows), stored[0].shape[1], dtype=torch.float64)
        for column in range(rows.shape[1]):
            of_weight = stored[1][0, :, column // 96].repeat_interleave(48)[: total.shape[1]]
            by_weight = stored[0][0, :, column].double() * of_weight
            total += (numbers[:, column].double() * scales[:, column // 128])[:, None] * by_weight
        return total.float()

    gate, up = product(x, weights.gate_up).chunk(2, 1)
    expected = product(torch.nn.functional.silu(gate) * up, weights.down)
    assert (out.cpu() - expected).norm() <= 2e-3 * expected.norm()


@pytest.mark.parametrize("rows", [[1], [0, 17, 130], [40] * 8, [500, 3, 300]])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry, "cuda"))
def test_in_bfloat16_on_a_device(kernel: Kernel, device: str, rows: list[int]) -> None:
    """The last three rows are nobody's."""
    where, block = torch.device(device), (128, 128)
    rule = Geometry(len(rows), 512, 384, "silu", torch.bfloat16, where, block=block)
    weights = moved(layer(rule), where)
    x = torch.randn(sum(rows) + 3, 512, device=where).bfloat16()
    counts = torch.tensor(rows, device=where)
    out = kernel.make(rule)(x, counts, weights).float()
    expected = definition(replace(rule, dtype=torch.float32), x.float(), counts, weights)
    assert (out - expected).norm() < 2e-2 * expected.norm()
    assert (out[sum(rows) :] == 0).all()


DEEPSEEK = Geometry(
    32, 7168, 2048, "silu", torch.bfloat16, META, block=(128, 128), gpu=gpu("sm_90")
)
"""On 8 ranks."""


def launched(rule: Geometry, count: int) -> list[Launch]:
    def empty(*shape: int) -> Fp8Weight:
        scales = (shape[0], -(-shape[1] // 128), -(-shape[2] // 128))
        numbers = torch.empty(shape, dtype=FP8, device=META)
        return Fp8Weight(numbers, torch.empty(scales, device=META), (128, 128))

    weights = ExpertWeights(
        empty(rule.experts, 2 * rule.columns, rule.hidden),
        empty(rule.experts, rule.hidden, rule.columns),
    )
    counts = torch.empty(rule.experts, dtype=torch.int64, device=META)
    rows = torch.empty(count, rule.hidden, dtype=rule.dtype, device=META)
    with recording() as launches:
        choose(rule).make(rule)(rows, counts, weights)
    return launches


def test_compiles_for_sm_90(hopper: Compile) -> None:
    assert {each.stack for each in hopper(launched(DEEPSEEK, 1))} == {0}


def test_a_plan_has_the_variants_for_all_numbers_of_rows() -> None:
    half, block = torch.bfloat16, (128, 128)
    assert {tile(half, 8, rows, block) for rows in range(1, 2000)} == set(tiles(half, block))
    for count in (1, 16, 1000):
        made = [each for each in launched(DEEPSEEK, count) if each.function == "down"]
        assert [dict(each.constants)["block_t"] for each in made] == [16, 64, 128]


@pytest.mark.parametrize(
    ("target", "block", "reads"),
    [
        ("sm_80", (128, 128), False),
        ("sm_89", (128, 128), True),
        ("sm_90", (128, 128), True),
        ("sm_90", (128, 48), False),  # 16 columns a step: no instruction has so few
        ("sm_80", None, True),
    ],
)
def test_which_weights_a_gpu_reads_as_they_are_stored(
    target: str, block: tuple[int, int] | None, reads: bool
) -> None:
    asked = replace(DEEPSEEK, block=block, gpu=gpu(target))
    assert (reading(asked) is not None) == reads
