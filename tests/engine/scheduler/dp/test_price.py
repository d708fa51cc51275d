"""What prompts add to a pass, as a rank measures it."""

import random

import pytest
from pds_engine.scheduler.dp.price import GUESS, KEPT, MOST, Price


def measured(passes: int, held_up: float = 0.0) -> Price:
    """Passes of 10 ms without prompts, and of 30 ms + 20 µs a token of the busiest rank + 5 µs a
    token of all; some of them held up."""
    draw, price = random.Random(3), Price()
    for _ in range(passes):
        ranks = [draw.randrange(1, 2000) for _ in range(draw.randrange(1, 9))]
        seconds = 0.03 + 20e-6 * max(ranks) + 5e-6 * sum(ranks)
        price.add(max(ranks), sum(ranks), seconds + 0.5 * (draw.random() < held_up))
        price.add(0, 0, 0.01 + 0.5 * (draw.random() < held_up))
    return price


def test_before_both_kinds_of_passes_were_measured_it_is_a_guess():
    price = Price()
    for _ in range(KEPT):
        price.add(100, 100, 0.03)
    assert (price.fixed, price.of(1000)) == (GUESS, 0)


@pytest.mark.parametrize("held_up", [0.0, 0.1])
def test_the_parts_of_a_pass_are_told_apart(held_up):
    """30 ms are two passes of 10 ms more; 1,000 tokens take 20 ms; what all ranks add does not
    count, for waiting does not save it."""
    price = measured(KEPT, held_up)
    assert price.fixed == pytest.approx(20, abs=1)
    assert price.of(1000) == pytest.approx(20, abs=1)


def test_passes_that_are_all_alike_have_no_price_for_a_token():
    price = Price()
    for _ in range(KEPT):
        price.add(500, 500, 0.04)
        price.add(0, 0, 0.01)
    assert (price.fixed, price.of(500)) == (30, 0)


def test_it_is_bounded_and_takes_no_nonsense():
    price = Price()
    for number in range(KEPT):
        price.add(number + 1, number + 1, 100.0 * (number + 1))
        price.add(0, 0, 1e-3)
        price.add(5, 5, 0.0)
        price.add(0, 0, -1.0)
    assert price.of(10_000) == MOST
    assert 0 <= price.fixed <= MOST


def test_it_follows_what_changes():
    price = measured(KEPT)
    for _ in range(KEPT):
        price.add(0, 0, 0.02)
    for tokens in range(100, 100 + 10 * KEPT, 10):
        price.add(tokens, tokens, 0.06)
    assert price.fixed == 20
