"""A request whose numbers overflow is marked, and harms no other in its batch."""

from typing import Any

import pytest
from pds_engine.messages import Sampling

KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {},
    "min_p": {"min_p": 0.1},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.9},
    "all candidates": {"top_k": 300, "top_p": 0.999, "temperature": 3.0},
    "penalised": {"temperature": 0.0, "repetition_penalty": 1.3, "min_tokens": 2},
    "logprobs": {"temperature": 0.0, "logprobs": 3},
}


def options(kind: str, **keys: Any) -> Sampling:
    return Sampling(max_tokens=6, **(KINDS[kind] | keys))


@pytest.mark.parametrize("kind", KINDS)
def test_each_way_of_choosing_marks_it(kind, overflowing, poison, driver):
    prompt = [7, 8, 9, poison, 10]
    (request,) = driver(overflowing).run([prompt], options(kind))
    assert request.unsound == list(range(6))
    assert all(0 <= token < 320 for token in request.output)
    (sound,) = driver(overflowing).run([[7, 8, 9, 11, 10]], options(kind))
    assert sound.unsound == []


@pytest.mark.parametrize("kind", KINDS)
def test_others_in_the_batch_are_unharmed(kind, overflowing, poison, driver):
    good = [[20 + i, 30, 40] * (3 * i + 1) for i in range(3)]
    bad = [[poison, 9], [12] * 40 + [poison]]
    alone = driver(overflowing).run(good, options(kind), seeds=[1, 2, 3])
    assert not any(request.unsound for request in alone)
    mixed = driver(overflowing).run(
        [good[0], bad[0], good[1], bad[1], good[2]],
        options(kind), chunk=16, budget=50, seeds=[1, 8, 2, 9, 3],
    )  # fmt: skip
    assert [request.output for request in mixed[::2]] == [request.output for request in alone]
    assert all(request.unsound for request in mixed[1::2])


def test_it_may_begin_in_the_middle_of_an_output(overflowing, poison, driver):
    (request,) = driver(overflowing).run([[7, 8, 9]], options("greedy", logit_bias={poison: 1e6}))
    assert request.output[0] == poison
    assert request.unsound == [1, 2, 3, 4, 5]


def test_the_slot_serves_the_next_request(overflowing, poison, driver):
    runs = driver(overflowing)
    expected = driver(overflowing).run([[7, 8, 9]], options("penalised"))[0].output
    for prompt in ([7, poison], [7, 8, 9]):
        (last,) = runs.run([prompt], options("penalised"))
    assert (last.output, last.unsound) == (expected, [])


def test_a_prompt_s_scores_of_such_a_request_do_no_harm(overflowing, poison, driver):
    (request,) = driver(overflowing).run([[7, poison, 9]], options("greedy", prompt_logprobs=2))
    assert request.unsound == list(range(6))
