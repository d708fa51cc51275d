"""Tokens do not depend on layout, chunks, or what is switched on.

A third of the cases, another one for each layout, so that every two values meet; `make test-all`
has them all.
"""

import random
from collections.abc import Callable, Mapping
from itertools import combinations, product

import pytest
from pds_engine.messages import Submit
from pds_simulation import model
from pds_simulation.model import ExpectedAnswer
from simulated import Ask, Simulate

SHARED = tuple(range(100, 148))
"""A beginning that some prompts have in common: three pages."""


LENGTHS = (1, 15, 16, 17, 32, 47, 127, 128, 129, 200, 257, 300)
"""Around pages and chunks."""


MakeRequests = Callable[[bool], list[tuple[float, Submit]]]
Right = Mapping[bool, Mapping[str, ExpectedAnswer]]
"""By whether log-probabilities are asked for, and by request."""


@pytest.fixture(scope="module")
def requests(ask: Ask) -> MakeRequests:
    """Many chunked prompts and when they come; some come again later, as a talk's next turn."""

    def make(logprobs: bool) -> list[tuple[float, Submit]]:
        rng = random.Random(4)
        asked = []
        for number, length in enumerate(LENGTHS):
            beginning = SHARED if number % 3 == 0 else ()
            prompt = (*beginning, *rng.choices(range(50), k=300))[:length]
            options = {
                "max_tokens": rng.randint(1, 12),
                "temperature": float(number % 2),
                "repetition_penalty": 1.5 if number % 4 == 1 else 1.0,
                "logprobs": 2 if logprobs else None,
                "output_ids": (7, 8) if number == 5 else (),
                "seed": number,
            }
            asked.append((float(number // 2), ask(f"r{number}", prompt, **options)))
            if number % 4 == 3:
                turn = ask(f"r{number}+", (*prompt, 1, 2, 3), **options)
                asked.append((500.0, turn))
        return asked

    return make


@pytest.fixture(scope="module")
def right(requests: MakeRequests) -> Right:
    return {
        logprobs: {
            request.request_id: model.answer(request, 4) for _, request in requests(logprobs)
        }
        for logprobs in (False, True)
    }


AXES = {
    "chunk_size": [16, 128, 512],
    "async_scheduling": [True, False],
    "skip_output": [True, False],
    "prefix_cache": [True, False],
}


def share(of: int, pp: int, tp: int, logprobs: bool) -> list[tuple[int, tuple[int | bool, ...]]]:
    """Every `of`th of the cases, and its number."""
    first = pp + tp + logprobs
    return [case for case in enumerate(product(*AXES.values())) if (case[0] + first) % of == 0]


def test_every_two_values_meet():
    names = (*AXES, "pp", "tp", "logprobs")
    met = {
        frozenset(pair)
        for pp, tp, logprobs in product((1, 2, 4), (1, 2), (False, True))
        for _, values in share(3, pp, tp, logprobs)
        for pair in combinations(zip(names, (*values, pp, tp, logprobs), strict=True), 2)
    }
    axes = [*AXES.items(), ("pp", (1, 2, 4)), ("tp", (1, 2)), ("logprobs", (False, True))]
    assert met == {
        frozenset(((one, a), (other, b)))
        for (one, these), (other, those) in combinations(axes, 2)
        for a, b in product(these, those)
    }


@pytest.mark.parametrize("of", [3, pytest.param(1, marks=pytest.mark.soak)])
@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("pp", [1, 2, 4])
def test_tokens_are_the_models(
    simulate: Simulate,
    requests: MakeRequests,
    right: Right,
    pp: int,
    tp: int,
    logprobs: bool,
    of: int,
):
    for number, values in share(of, pp, tp, logprobs):
        case = dict(zip(AXES, values, strict=True)) | {"rendezvous": number % 3 > 0}
        group = simulate(pp=pp, tp=tp, pages=160, max_running=8, **case)
        for at, request in requests(logprobs):
            group.submit(request, at)
        answers = group.run()
        assert (group.core.ledger.prefix_hits > 0) == case["prefix_cache"]
        for received in answers:
            name = received.request.request_id
            answer = ExpectedAnswer(tuple(received.tokens), tuple(received.logprobs))
            assert answer == right[logprobs][name], (name, case)
