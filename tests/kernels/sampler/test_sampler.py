"""Each sampler against the definition: the same tokens, on odd vocabularies and splits."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl
from ahead import Compile
from pds_kernels.launching import recording
from pds_kernels.sampler import Draws, Geometry, Kernel, Rows, choose, gumbel_max
from pds_kernels.sampler.dispatch import KERNELS
from pds_kernels.sampler.philox import _gumbel
from pds_kernels.sampler.triton import gumbel, gumbel_ceiling
from pds_kernels.sampler.triton import gumbel_max as on_triton
from pds_kernels.sampler.tuning import BLOCK, MOST_PARTS, Split, split
from serving_kernels import INTERPRETED, served
from torch import Tensor

SEEDS = [5, (1 << 64) - 1, 7919, 1 << 32, 0]
NAN, INF = float("nan"), float("inf")


def geometry(device: torch.device) -> Geometry:
    return Geometry(100, 0, device)


IN_CPP = [each for each in served(KERNELS, geometry, "cpu") if each.id.startswith("cpu")]
"""Triton's interpreter takes minutes for what these take milliseconds for."""


def rows_of(temperatures: Sequence[float], device: str, least: Tensor | None = None) -> Rows:
    count = len(temperatures)
    seeds = [SEEDS[at % len(SEEDS)] for at in range(count)]
    draws = Draws.of(
        seeds, [at % 2 for at in range(count)], list(range(count)), torch.device(device)
    )
    return Rows.of(temperatures, draws, least)


def run(kernel: Kernel, logits: Tensor, rows: Rows, first: int = 0) -> tuple[Tensor, Tensor]:
    return kernel.make(Geometry(logits.shape[1], first, logits.device))(logits, rows)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("first", [0, 3, 4 * BLOCK + 1])
@pytest.mark.parametrize("columns", [1, 4, 1021, 2 * BLOCK + 3])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_against_the_definition(
    kernel: Kernel, device: str, columns: int, first: int, scale: float
) -> None:
    """Flat logits, usual ones and peaks. What lies beside a row is not read."""
    torch.manual_seed(columns)
    wide = torch.full((4, columns + 5), NAN, device=device)
    wide[:, :columns] = torch.randn(4, columns) * scale
    logits, rows = wide[:, :columns], rows_of([1.0, 0.0, 0.3, 1e4], device)
    values, ids = run(kernel, logits, rows, first)
    expected = gumbel_max(logits, rows, first)
    assert torch.equal(ids, expected[1])
    torch.testing.assert_close(values, expected[0], rtol=1e-14, atol=1e-14)
    assert values.dtype == torch.float64


@pytest.mark.parametrize("scale", [0.1, 2.0])
def test_blocks_are_skipped_only_where_nothing_can_win(scale: float) -> None:
    """On a GPU of one multiprocessor a program has all blocks of a row, one after another."""
    torch.manual_seed(5)
    device = torch.device("cpu" if INTERPRETED else "cuda")
    columns, temperatures = 6 * BLOCK + 7, [1.0, 0.4, 2.0, 1.0, 0.7, 1.0, 1.5, 0.0]
    logits = (torch.randn(len(temperatures), columns) * scale).to(device)
    rows = rows_of(temperatures, device.type)
    values, ids = on_triton(Geometry(columns, 6, device), 1, logits, rows)
    expected = gumbel_max(logits, rows, 6)
    assert torch.equal(ids, expected[1])
    torch.testing.assert_close(values, expected[0], rtol=1e-14, atol=1e-14)
    assert (ids // BLOCK).unique().numel() > 3  # not all of them win in their first block


@pytest.mark.parametrize("count", [1, 40])
@pytest.mark.parametrize(("kernel", "device"), IN_CPP)
def test_many_draws_of_a_large_vocabulary(kernel: Kernel, device: str, count: int) -> None:
    """Where a bound on the noise passes most tokens over, and where several threads share a row."""
    torch.manual_seed(count)
    logits = torch.randn(count, 60_001, device=device) * 1.5
    temperatures = [(1.0, 0.7, 3.0)[at % 3] for at in range(count)]
    draws = Draws.of(range(count), [0] * count, range(count), torch.device(device))
    rows = Rows.of(temperatures, draws)
    values, ids = run(kernel, logits, rows, 6)
    expected = gumbel_max(logits, rows, 6)
    assert torch.equal(ids, expected[1])
    torch.testing.assert_close(values, expected[0], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("kernel", "device"), IN_CPP)
def test_draws_follow_the_softmax(kernel: Kernel, device: str) -> None:
    torch.manual_seed(2)
    logits, count = torch.randn(12, device=device), 20_000
    draws = Draws.of([11] * count, [0] * count, range(count), torch.device(device))
    _, ids = run(kernel, logits.expand(count, -1), Rows.of([0.7] * count, draws))
    expected = (logits.double() / 0.7).softmax(-1) * count
    counts = torch.bincount(ids, minlength=12).double()
    # 11 degrees of freedom: above 31.3 once in a thousand seeds
    assert ((counts - expected) ** 2 / expected).sum() < 31.3


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_no_rows(kernel: Kernel, device: str) -> None:
    values, ids = run(kernel, torch.empty(0, 50, device=device), rows_of([], device))
    assert values.shape == ids.shape == (0,)


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("tied", [[0, 1], [7, 4000], [BLOCK - 1, BLOCK], [2500, 2501, 2502]])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_the_lowest_id_wins_a_tie(kernel: Kernel, device: str, tied: list[int], first: int) -> None:
    logits = torch.zeros(1, 4001, device=device)
    logits[:, tied] = 2.5
    _, ids = run(kernel, logits, rows_of([0.0], device), first)
    assert ids.tolist() == [tied[0] + first]


@pytest.mark.parametrize("first", [0, 486])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_the_lowest_id_wins_a_tie_of_noise(kernel: Kernel, device: str, first: int) -> None:
    """These two ids have the same word under this seed."""
    tied = [489, 1599]
    draws = Draws.of([922], [0], [0], torch.device(device))
    noise = draws.gumbel_of(torch.tensor([tied], device=device))[0]
    assert noise[0] == noise[1]
    logits = torch.full((1, 1700), -50.0, device=device)
    logits[:, [token - first for token in tied]] = 1.5
    _, ids = run(kernel, logits, Rows.of([0.7], draws), first)
    assert ids.tolist() == [tied[0]]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(
    ("bad", "unsound"),
    [([NAN], True), ([-NAN], True), ([INF], True), ([INF, NAN], True), ([-INF], False)],
)
@pytest.mark.parametrize("at", [0, 1500])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_unsound_rows_are_seen_in_their_value(
    kernel: Kernel, device: str, at: int, bad: list[float], unsound: bool, temperature: float
) -> None:
    torch.manual_seed(4)
    logits = torch.randn(2, 2000, device=device)
    logits[1, at : at + len(bad)] = torch.tensor(bad, device=device)
    values, ids = run(kernel, logits, rows_of([temperature] * 2, device), 8)
    assert values.isfinite().tolist() == [True, not unsound]
    assert all(8 <= token < 2008 for token in ids.tolist())


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_row_of_padding_alone(kernel: Kernel, device: str, temperature: float) -> None:
    """As the last rank may have: it must lose against every other rank's value."""
    logits = torch.full((1, 1200), -INF, device=device)
    values, ids = run(kernel, logits, rows_of([temperature], device), 5)
    assert values.tolist() == [-INF]
    assert 5 <= int(ids) < 1205


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_scores_below_the_least_are_not_drawn(kernel: Kernel, device: str) -> None:
    torch.manual_seed(6)
    logits = torch.randn(12, 1300, device=device)
    least = (logits.amax(1) / 2 + math.log(0.9)).contiguous()
    least[0] = -INF
    rows = rows_of([2.0] * 12, device, least)
    _, ids = run(kernel, logits, rows)
    assert torch.equal(ids, gumbel_max(logits, rows, 0)[1])
    drawn = logits.gather(1, ids.unsqueeze(1)).squeeze(1) / 2
    assert (drawn >= least).all()
    free = run(kernel, logits, replace(rows, least=None))[1]
    assert (free != ids).any() and free[0] == ids[0]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_shards_choose_what_the_whole_does(kernel: Kernel, device: str, ranks: int) -> None:
    torch.manual_seed(7)
    logits, rows = torch.randn(5, 1201, device=device), rows_of([0.0, 1, 1, 0.5, 2], device)
    each = -(-logits.shape[1] // ranks)
    shards = [
        run(kernel, logits[:, begin : begin + each].contiguous(), rows, begin)
        for begin in range(0, logits.shape[1], each)
    ]
    best = torch.stack([values for values, _ in shards]).argmax(0, keepdim=True)
    ids = torch.stack([ids for _, ids in shards]).gather(0, best)[0]
    assert torch.equal(ids, run(kernel, logits, rows)[1])


@triton.jit
def both_noises(words_at, noise_at, ceiling_at, block: tl.constexpr):
    at = tl.arange(0, block)
    words = tl.load(words_at + at).to(tl.uint32)
    tl.store(noise_at + at, gumbel(words))
    tl.store(ceiling_at + at, gumbel_ceiling(words))


def test_the_ceiling_is_above_the_noise_and_near_it_where_that_is_great() -> None:
    torch.manual_seed(8)
    ends = torch.tensor([0, 1, 2, 3, 1 << 24, 1 << 31, (1 << 32) - 2, (1 << 32) - 1])
    words = torch.cat((ends, torch.randint(1 << 32, (2048 - len(ends),))))
    words = words if INTERPRETED else words.cuda()
    noise, ceiling = torch.empty_like(words, dtype=torch.float64), words.float()
    both_noises[(1,)](words, noise, ceiling, block=len(words))
    torch.testing.assert_close(noise, _gumbel(words), rtol=1e-14, atol=1e-15)
    above = ceiling.double() - noise
    assert (above > 5e-4).all()
    assert (above[noise > 3] < 2e-3).all()
    assert (above[noise > 0] < 0.2).all()


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (1, 1, Split(1, 1)),
        (1, 128256, Split(126, 1)),
        (8, 128256, Split(63, 2)),
        (256, 128256, Split(2, 63)),
        (4096, 128256, Split(1, 126)),
        (0, 5000, Split(5, 1)),
        (1, 262208, Split(129, 2)),  # more blocks than a program compares
    ],
)
def test_few_rows_are_split_so_that_they_fill_the_gpu(
    rows: int, columns: int, expected: Split
) -> None:
    found = split(rows, columns, 132)
    assert found == expected
    assert found.parts <= MOST_PARTS
    assert (found.parts - 1) * found.blocks * BLOCK < columns <= found.parts * found.blocks * BLOCK


@pytest.mark.parametrize(("first", "bounded"), [(0, False), (64131, True)])
def test_compiles_for_sm_90(hopper: Compile, first: int, bounded: bool) -> None:
    meta, columns = torch.device("meta"), 128256
    wanted = Geometry(columns, first, meta)
    least = torch.empty(2, device=meta) if bounded else None
    rows = Rows.of([1.0, 0.0], Draws.of([1, 2], [0, 0], [0, 0], meta), least)
    with recording() as launches:
        choose(wanted).make(wanted)(torch.empty(2, columns, device=meta), rows)
    assert [each.stack for each in hopper(launches)] == [0, 0]
