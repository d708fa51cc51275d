"""The fit is exact on exact times, unmoved by what holds a step up, and refuses what is no cost."""

import random
from collections.abc import Callable

import pytest
from pds_engine.scheduler.cost import KEPT, REFIT, Cost, Measured, Meter, fit
from pds_engine.scheduler.prefill import ChunkPolicy

A, B, C = 3e-9, 2e-5, 0.004
"""Seconds: 8K tokens after 256K take 13 times as long as the first 8K."""


def seconds(start: int, length: int) -> float:
    return A * length * (2 * start + length) + B * length + C


def measured(start: int, length: int, factor: float = 1.0) -> Measured:
    return Measured(((start, length),), seconds(start, length) * factor)


VARIED = [measured(512 * at, 512 - 32 * (at % 9)) for at in range(24)]
ALIKE = [measured(512 * at, 512) for at in range(24)]


def test_exact_times_give_the_exact_cost() -> None:
    assert fit(VARIED) == pytest.approx(Cost(A, B), rel=1e-6)


def test_of_chunks_alike_the_fixed_part_counts_as_part_of_each_token() -> None:
    assert fit(ALIKE) == pytest.approx(Cost(A, B + C / 512), rel=1e-6)


def test_several_chunks_in_a_step_are_measured_together() -> None:
    pairs = [
        Measured(
            ((512 * at, 256), (0, 10 * at + 1)),
            seconds(512 * at, 256) + seconds(0, 10 * at + 1) - C,
        )
        for at in range(40)
    ]
    assert fit(pairs) == pytest.approx(Cost(A, B), rel=1e-6)


WINDOW = 3000


def seen(start: int, length: int) -> Measured:
    """A chunk whose tokens see a window: each costs what it sees."""
    pairs = sum(min(2 * at + 1, 2 * WINDOW) for at in range(start, start + length))
    return Measured(((start, length),), A * pairs + B * length + C)


def test_behind_a_window_each_token_costs_the_same() -> None:
    times = [seen(512 * at, 512 - 32 * (at % 9)) for at in range(24)]
    cost = fit(times, WINDOW)
    assert cost is not None
    assert cost[:2] == pytest.approx((A, B), rel=1e-3)
    assert cost.of(4000, 512) == pytest.approx(cost.of(9000, 512))
    assert cost.of(1000, 4000) == pytest.approx(cost.of(1000, 2000) + 2000 * (2 * A * WINDOW + B))


@pytest.mark.parametrize("start", [0, 1000, 2900, 2999, 3000, 3001, 50_000])
@pytest.mark.parametrize("budget", [1e-4, 1e-2, 0.1])
def test_a_length_spends_its_budget_across_the_window(start: int, budget: float) -> None:
    cost = Cost(A, B, WINDOW)
    length = cost.length(start, budget)
    assert cost.of(start, length) <= budget + 1e-9 < cost.of(start, length + 1) + 2e-9


@pytest.mark.parametrize("held_up", [3, 30])
def test_steps_that_were_held_up_do_not_move_it(held_up: float) -> None:
    times = [
        measured(512 * at, 512 - 32 * (at % 9), held_up if at % 5 == 0 else 1) for at in range(24)
    ]
    assert fit(times) == pytest.approx(Cost(A, B), rel=1e-3)


def test_noise_moves_it_little() -> None:
    rng = random.Random(0)
    times = [measured(512 * at, 512 - 32 * (at % 9), rng.uniform(0.95, 1.1)) for at in range(48)]
    cost = fit(times)
    assert cost is not None
    assert cost.quadratic == pytest.approx(A, rel=0.1)


NONSENSE: dict[str, Callable[[int], Measured]] = {
    "one place": lambda at: measured(0, 512),
    "late chunks are cheaper": lambda at: Measured(((512 * at, 512),), 1.0 / (at + 1)),
    "all take the same": lambda at: Measured(((512 * at, 512),), 0.25),
    "noise": lambda at: Measured(((512 * at, 512),), random.Random(at).choice([0.001, 1.0, 9.0])),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_what_is_no_cost_is_refused(kind: str) -> None:
    assert fit([NONSENSE[kind](at) for at in range(16)]) is None
    meter = Meter()
    for at in range(16):
        meter.add(NONSENSE[kind](at))
    assert meter.cost == Cost()


def test_nothing_is_said_of_nothing() -> None:
    assert fit([]) is None
    meter = Meter()
    for _ in range(3 * REFIT):
        meter.add(Measured((), 1.0))
        meter.add(Measured(((0, 512),), 0.0))
    assert meter.cost == Cost()


def test_before_anything_is_known_cost_is_the_number_of_tokens() -> None:
    assert [Cost().length(start, 512) for start in (0, 10, 1 << 18)] == [512] * 3
    assert Cost().of(100, 7) == 7


@pytest.mark.parametrize("start", [0, 1, 512, 4096, 100_000, 262_144])
@pytest.mark.parametrize("length", [1, 16, 511, 8192])
def test_length_inverts_cost(start: int, length: int) -> None:
    cost = Cost(A, B)
    assert cost.length(start, cost.of(start, length)) == length
    assert cost.of(start, cost.length(start, 0.01)) <= 0.01 * (1 + 1e-6)
    assert cost.of(start, cost.length(start, 0.01) + 1) > 0.01


def test_a_late_chunk_costs_what_the_first_one_does() -> None:
    policy = ChunkPolicy(8192, 16, Cost(A / 10, B))
    starts = (0, 8192, 65536, 131072, 262144)
    lengths = [policy.length_at(start) for start in starts]
    assert lengths == [8192, 6823, 3054, 1854, 1035]
    for start, length in zip(starts, lengths, strict=True):
        assert policy.cost.of(start, length) == pytest.approx(policy.budget, rel=1e-3)


def test_no_chunk_is_shorter_than_an_eighth_of_the_first_nor_than_a_page() -> None:
    assert ChunkPolicy(512, 16, Cost(1.0, 1.0)).length_at(1 << 20) == 64
    assert ChunkPolicy(64, 16, Cost(1.0, 1.0)).length_at(1 << 20) == 16


def test_the_meter_forgets_old_times_and_stays_small() -> None:
    meter = Meter()
    for round in range(300):
        for at in range(24):
            meter.add(measured(512 * at, 512 - 32 * (at % 9), 5.0 if round < 290 else 1.0))
    assert meter.cost.quadratic == pytest.approx(A, rel=0.1)  # five times as much before
    assert sum(map(len, meter._kept.values())) <= KEPT * 20


def test_the_meter_waits_until_it_has_seen_several_places() -> None:
    meter = Meter()
    for _ in range(4 * REFIT):
        meter.add(measured(0, 512))
        meter.add(measured(512, 480))
    assert meter.cost == Cost()
    for at in range(2, 2 + REFIT):
        meter.add(measured(512 * at, 256))
    assert meter.cost == pytest.approx(Cost(A, B), rel=1e-6)
