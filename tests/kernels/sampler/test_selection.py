"""Each selection against the definition: the same tokens under top_k, top_p and min_p, the same
likeliest ones, and penalties bit by bit."""

import itertools
from collections.abc import Callable

import pytest
import torch
from pds_kernels.sampler import Bounds, Draws, Geometry, Penalties, Rows, Selector, unpack
from pds_kernels.sampler.dispatch import SELECTORS
from pds_kernels.sampler.reference import InTorch
from serving_kernels import served
from torch import Tensor

CPU = torch.device("cpu")
NAN, INF = float("nan"), float("inf")
DEFINITION = InTorch(0)


def geometry(device: torch.device) -> Geometry:
    return Geometry(100, 0, device)


IN_CPP = [each for each in served(SELECTORS, geometry, "cpu") if each.id.startswith("cpu")]
"""Each but the definition itself."""
GRID = list(itertools.product((0, 1, 7, 400, 5000), (1.0, 0.95, 0.4, 0.0), (0.0, 0.02, 1.0)))
LOGITS: dict[str, Callable[[int, int], Tensor]] = {
    "flat": lambda rows, columns: torch.randn(rows, columns) / 4,
    "usual": torch.randn,
    "peaked": lambda rows, columns: torch.randn(rows, columns) * 6 + 11,
    "tied": lambda rows, columns: (torch.randn(rows, columns) * 3).round() / 2,
    "equal": lambda rows, columns: torch.full((rows, columns), -0.0),
    "narrow": lambda rows, columns: 3 + torch.randn(rows, columns) * 1e-5,
    "wide": lambda rows, columns: torch.randn(rows, columns) * 300,
    "masked": lambda rows, columns: torch.where(
        torch.rand(rows, columns) < 0.98, -INF, torch.randn(rows, columns)
    ).index_fill(1, torch.tensor([columns // 2]), 1.0),
}


def rows_of(temperatures: list[float], seed: int = 0) -> Rows:
    count = len(temperatures)
    draws = Draws.of([seed + at * 7919 for at in range(count)], [0] * count, range(count), CPU)
    return Rows.of(temperatures, draws)


def bounds_of(grid: list[tuple[int, float, float]]) -> Bounds:
    top_k, top_p, min_p = zip(*grid, strict=True)
    return Bounds.of(top_k, top_p, min_p, CPU)


@pytest.mark.parametrize("columns", [1, 5, 37, 1021, 4100])
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize(("selector", "device"), IN_CPP)
def test_draws_are_the_definition_s(
    selector: Selector, device: str, kind: str, columns: int
) -> None:
    """What lies beside a row is not read."""
    torch.manual_seed(columns)
    count = len(GRID)
    wide = torch.full((count, columns + 3), NAN)
    wide[:, :columns] = LOGITS[kind](count, columns)
    logits = wide[:, :columns]
    rows = rows_of([(1.0, 0.7, 0.0, 2.5)[at % 4] for at in range(count)])
    values, ids = selector.make(geometry(CPU)).draw(logits, rows, bounds_of(GRID))
    expected = DEFINITION.draw(logits, rows, bounds_of(GRID))
    assert torch.equal(ids, expected[1])
    torch.testing.assert_close(values, expected[0], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("selector", "device"), IN_CPP)
def test_many_draws_of_a_large_vocabulary(selector: Selector, device: str) -> None:
    torch.manual_seed(3)
    grid = [(0, 0.95, 0.0), (0, 0.5, 0.0), (50, 1.0, 0.0), (1200, 0.9, 0.0), (0, 1.0, 0.1)] * 8
    logits = torch.randn(len(grid), 60_001) * torch.linspace(0.1, 4, len(grid)).unsqueeze(1)
    rows = rows_of([1.0] * len(grid))
    found = selector.make(geometry(CPU)).draw(logits, rows, bounds_of(grid))[1]
    assert torch.equal(found, DEFINITION.draw(logits, rows, bounds_of(grid))[1])


@pytest.mark.parametrize("bad", [NAN, -NAN, INF])
@pytest.mark.parametrize(("selector", "device"), IN_CPP)
def test_unsound_rows_are_seen_in_their_value(selector: Selector, device: str, bad: float) -> None:
    torch.manual_seed(4)
    logits = torch.randn(3, 500)
    logits[1, 321], logits[2] = bad, -INF
    grid = [(5, 0.9, 0.0)] * 3
    values, ids = selector.make(geometry(CPU)).draw(logits, rows_of([1.0] * 3), bounds_of(grid))
    assert values.isfinite().tolist() == [True, False, False]
    assert all(0 <= token < 500 for token in ids.tolist())


@pytest.mark.parametrize("bound", [(5, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.1), (7, 0.5, 0.5)])
@pytest.mark.parametrize(("selector", "device"), IN_CPP)
def test_scores_that_overflow(
    selector: Selector, device: str, bound: tuple[int, float, float]
) -> None:
    """Logits are finite. Upwards such a row is unsound; downwards its token is the last."""
    torch.manual_seed(4)
    logits = torch.randn(3, 500)
    logits[1, 321], logits[2, 321] = 1e36, -1e36
    rows, bounds = rows_of([1e-3] * 3), bounds_of([bound] * 3)
    values, ids = selector.make(geometry(CPU)).draw(logits, rows, bounds)
    assert values.isfinite().tolist() == [True, False, True]
    assert torch.equal(ids[[0, 2]], DEFINITION.draw(logits, rows, bounds)[1][[0, 2]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("selector", "device"), IN_CPP)
def test_nan_in_any_part_of_a_row(selector: Selector, device: str, temperature: float) -> None:
    """Few long rows are cut up among threads."""
    torch.manual_seed(5)
    logits = torch.randn(2, 40_000)
    logits[1, 39_000] = NAN
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        values, _ = selector.make(geometry(CPU))(logits, rows_of([temperature] * 2))  # type: ignore[operator]
    finally:
        torch.set_num_threads(before)
    assert values.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("most", [1, 20, 256, 3000])
@pytest.mark.parametrize("columns", [1, 5, 37, 1021, 4100])
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize(("selector", "device"), IN_CPP)
def test_the_likeliest(selector: Selector, device: str, kind: str, columns: int, most: int) -> None:
    torch.manual_seed(columns)
    logits, temperatures = LOGITS[kind](4, columns), torch.tensor([1.0, 0.3, 2.0, 1e-4])
    logits[3, columns // 3] = -NAN
    made = selector.make(Geometry(columns, 12, CPU))
    found = made.likeliest(logits, temperatures, most)
    expected = InTorch(12).likeliest(logits, temperatures, most)
    assert torch.equal(found, expected)
    scores, ids = unpack(found)
    own = (logits / temperatures.unsqueeze(1)).gather(1, ids - 12)
    torch.testing.assert_close(scores, own, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("columns", [1, 5, 37, 4100])
@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize(("selector", "device"), IN_CPP)
def test_sums(selector: Selector, device: str, kind: str, columns: int) -> None:
    """Chances, of all scores and above a bound; -infinity, NaN and infinity as the definition."""
    torch.manual_seed(columns)
    made, logits = selector.make(geometry(CPU)), LOGITS[kind](5, columns)
    temperatures, best = torch.tensor([1.0, 0.7, 1.3, 3.0, 0.1]), logits.amax(1)
    best /= temperatures
    for least in (torch.full((5,), -INF), best - 0.5):
        torch.testing.assert_close(
            made.mass(logits, temperatures, best, least),
            DEFINITION.mass(logits, temperatures, best, least),
            rtol=1e-13, atol=0,
        )  # fmt: skip
    logits[1, 0], logits[2, -1], logits[3] = INF, NAN, -INF
    torch.testing.assert_close(
        made.log_sum(logits), DEFINITION.log_sum(logits), rtol=1e-13, atol=1e-15, equal_nan=True
    )


@pytest.mark.parametrize(("selector", "device"), IN_CPP)
def test_a_row_depends_on_nothing_beside_it(selector: Selector, device: str) -> None:
    """Neither on its batch nor on the number of threads, to the last bit."""
    torch.manual_seed(6)
    logits, count = torch.randn(6, 9000), 6
    grid = [(0, 0.9, 0.0), (40, 1.0, 0.0), (0, 1.0, 0.0), (9, 0.5, 0.1), (0, 0.2, 0.0), (0, 1, 0.3)]
    made, rows, before = (
        selector.make(geometry(CPU)),
        rows_of([1.0] * count),
        torch.get_num_threads(),
    )
    try:
        torch.set_num_threads(1)
        whole = made.draw(logits, rows, bounds_of(grid))
        alone = made.draw(logits[2:3], one_of(rows, 2), bounds_of(grid[2:3]))
        torch.set_num_threads(2)
        again = made.draw(logits, rows, bounds_of(grid))
        freely = made(logits[2:3], one_of(rows, 2))  # type: ignore[operator]
    finally:
        torch.set_num_threads(before)
    for ours, theirs in zip(whole, again, strict=True):
        assert torch.equal(ours, theirs)
    assert [float(alone[0]), int(alone[1])] == [float(whole[0][2]), int(whole[1][2])]
    assert [float(freely[0]), int(freely[1])] == [float(whole[0][2]), int(whole[1][2])]


def one_of(rows: Rows, at: int) -> Rows:
    return Rows.of([float(rows.temperatures[at])], rows.draws.take([at]))


@pytest.mark.parametrize("first", [0, 30])
@pytest.mark.parametrize(("selector", "device"), IN_CPP)
def test_penalties_are_the_definition_s_and_undone(
    selector: Selector, device: str, first: int
) -> None:
    torch.manual_seed(7)
    logits, tokens = torch.randn(5, 120), slice(first, first + 100)
    logits[:, 100:] = -INF  # padding
    penalties = Penalties(
        rows=torch.tensor([3, 0, 1]),
        slots=torch.tensor([1, 4, 0]),
        prompted=(torch.rand(6, 140) < 0.1)[:, tokens],
        counts=(torch.rand(6, 140) * 1.2).int().mul_(3)[:, tokens],
        repetition=torch.tensor([1.3, 0.7, 1.0]),
        presence=torch.tensor([0.3, -0.7, 0.1]),
        frequency=torch.tensor([0.0, 0.7, 1.0 / 3]),
    )
    found, expected = logits.clone(), logits.clone()
    restore = selector.make(geometry(CPU)).penalise(found, penalties)
    put_back = DEFINITION.penalise(expected, penalties)
    assert torch.equal(found, expected)
    assert (found != logits).any(1).tolist() == [True, True, False, True, False]
    restore(), put_back()
    assert torch.equal(found, logits) and torch.equal(expected, logits)
