"""Experts that are packed at load: what the seam's tests of all kernels do not ask."""

from dataclasses import replace

import pytest
import torch
from pds_kernels import cpu
from pds_kernels.grouped_gemm import ExpertWeights, Geometry, Kernel, experts, packing
from pds_kernels.grouped_gemm.cpu import Beside, OnCpu
from pds_kernels.grouped_gemm.dispatch import KERNELS
from pds_kernels.grouped_gemm.reference import feed as definition
from poison import poisoned
from serving_kernels import served
from torch import Tensor

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DTYPES = [(F32, F32), (F32, BF16), (F32, F16), (BF16, BF16)]
"""Of rows and of weights."""
EXPERTS, HIDDEN, COLUMNS, CHOICES = 6, 65, 33, 3
GEOMETRY = Geometry(EXPERTS, HIDDEN, COLUMNS, "silu", F32, torch.device("cpu"))


def geometry(device: torch.device, dtypes: tuple[torch.dtype, ...] = (F32, F32)) -> Geometry:
    return replace(GEOMETRY, device=device, dtype=dtypes[0], stored=dtypes[1])


PANELS = [each for each in served(KERNELS, geometry, "cpu") if each.id.startswith("cpu")]


def plain(dtypes: tuple[torch.dtype, ...], *, bias: bool = True) -> ExpertWeights:
    torch.manual_seed(1)
    return ExpertWeights(
        (torch.randn(EXPERTS, 2 * COLUMNS, HIDDEN) / 4).to(dtypes[1]),
        (torch.randn(EXPERTS, HIDDEN, COLUMNS) / 4).to(dtypes[1]),
        torch.randn(EXPERTS, 2 * COLUMNS).to(dtypes[0]) if bias else None,
        torch.randn(EXPERTS, HIDDEN).to(dtypes[0]) if bias else None,
    )


def packed(feed: OnCpu, weights: ExpertWeights) -> ExpertWeights:
    with poisoned():
        found = feed.empty(EXPERTS)
    for place in range(EXPERTS):
        feed.pack(weights.gate_up[place], weights.down[place], found, place)
    return weights._replace(gate_up=found.gate_up, down=found.down)


def routed(tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, whose rows lie apart, weights and ids. Nobody chooses expert 2."""
    torch.manual_seed(tokens)
    wide = torch.full((tokens, HIDDEN + 3), float("nan"))
    wide[:, :HIDDEN] = torch.randn(tokens, HIDDEN)
    ids = torch.tensor([0, 1, 3, 4, 5])[torch.rand(tokens, 5).argsort(1)[:, :CHOICES]]
    return wide.to(dtype)[:, :HIDDEN], torch.rand(tokens, CHOICES), ids


def computed(
    feed: OnCpu,
    given: tuple[Tensor, Tensor, Tensor],
    weights: ExpertWeights,
    beside: Beside | None = None,
) -> Tensor:
    """A whole mixture as one program, in a room for more tokens."""
    x, of_choices, ids = given
    with poisoned():
        room = feed.room(len(x) + 4, CHOICES, EXPERTS)
        out = torch.empty(len(x), HIDDEN, dtype=x.dtype)
    ops = feed.ops(x, (of_choices, ids), weights, room, out, beside)
    cpu.Program(ops).run(cpu.Step.of(len(x)))
    return out


@pytest.mark.parametrize("tokens", [1, 7, 150])
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("kernel", "device"), PANELS)
def test_a_program_computes_what_the_definition_does(
    kernel: Kernel, device: str, dtypes: tuple[torch.dtype, ...], tokens: int
) -> None:
    feed = kernel.make(geometry(torch.device(device), dtypes))
    weights, (x, of_choices, ids) = plain(dtypes), routed(tokens, dtypes[0])
    wide = ExpertWeights(*(None if each is None else each.float() for each in weights))
    expected = experts(
        lambda *given: definition(GEOMETRY, *given), x.float(), ids, of_choices, wide
    )
    out = computed(feed, (x, of_choices, ids), packed(feed, weights)).float()
    assert (out - expected).norm() <= (1e-2 if dtypes[0] == BF16 else 1e-6) * expected.norm()


@pytest.mark.parametrize(("kernel", "device"), PANELS)
def test_an_expert_without_rows_and_one_elsewhere_are_not_read(kernel: Kernel, device: str) -> None:
    feed = kernel.make(geometry(torch.device(device)))
    weights, (x, of_choices, ids) = plain((F32, F32)), routed(9, F32)
    for part in weights:
        if part is not None:
            part[2] = float("nan")
    ids[ids == 4] = EXPERTS
    expected = experts(lambda *given: definition(GEOMETRY, *given), x, ids, of_choices, weights)
    out = computed(feed, (x, of_choices, ids), packed(feed, weights))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("kernel", "device"), PANELS)
def test_the_block_that_all_tokens_pass_is_added(
    kernel: Kernel, device: str, dtype: torch.dtype, gated: bool
) -> None:
    feed = kernel.make(geometry(torch.device(device), (dtype, dtype)))
    weights, given = packed(feed, plain((dtype, dtype))), routed(5, dtype)
    shared, logits = torch.randn(5, HIDDEN).to(dtype), torch.randn(5).to(dtype)
    alone = computed(feed, given, weights).float()
    out = computed(feed, given, weights, Beside(shared, logits if gated else None))
    counts = logits.float().sigmoid()[:, None] if gated else 1.0
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == BF16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(out.float(), alone + counts * shared.float(), **tolerance)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("kernel", "device"), PANELS)
def test_a_token_depends_neither_on_its_batch_nor_on_threads(
    kernel: Kernel, device: str, dtypes: tuple[torch.dtype, ...]
) -> None:
    feed = kernel.make(geometry(torch.device(device), dtypes))
    weights, (x, of_choices, ids) = packed(feed, plain(dtypes)), routed(130, dtypes[0])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = computed(feed, (x, of_choices, ids), weights)
        torch.set_num_threads(2)
        for first, end in ((0, 130), (0, 1), (5, 8), (40, 127)):
            part = (x[first:end], of_choices[first:end], ids[first:end])
            assert torch.equal(computed(feed, part, weights), whole[first:end])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("kernel", "device"), PANELS)
def test_packed_and_plain_ones_are_the_same(
    kernel: Kernel, device: str, dtypes: tuple[torch.dtype, ...]
) -> None:
    feed, weights = kernel.make(geometry(torch.device(device), dtypes)), plain(dtypes, bias=False)
    rows, counts = torch.randn(9, HIDDEN).to(dtypes[0]), torch.tensor([3, 0, 1, 0, 2, 1])
    with poisoned():
        of_plain, of_packed = (
            feed(rows, counts, each) for each in (weights, packed(feed, weights))
        )
    assert torch.equal(of_plain, of_packed) and (of_packed[7:] == 0).all()


def test_rows_of_another_dtype_are_refused() -> None:
    feed, rows = packing(GEOMETRY), torch.zeros(1, HIDDEN, dtype=BF16)
    assert feed is not None
    with pytest.raises(ValueError, match=r"rows are torch.bfloat16: .* not for torch.float32"):
        feed(rows, torch.tensor([1, 0, 0, 0, 0, 0]), plain((F32, F32)))


def test_which_weights_are_packed() -> None:
    assert packing(GEOMETRY) is not None
    for other in (
        replace(GEOMETRY, block=(128, 128)),
        replace(GEOMETRY, dtype=F16),
        replace(GEOMETRY, device=torch.device("meta")),
    ):
        assert packing(other) is None
