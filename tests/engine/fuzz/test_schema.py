"""Requests made from the OpenAPI document, right and wrong ones, against real processes.

Whatever comes, the answer is no 5xx, a refusal is OpenAI's error object, and nobody logs a
traceback (`asked` looks).
"""

import random
import time
from collections import Counter

import httpx
import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis.strategies import SearchStrategy
from real_processes import ServingProcess
from schemathesis import Case, GenerationMode

SLICE, DEPTH = 150, 5_500
"""Cases in all of each process."""
SECONDS = 900
"""After which a soak gives up."""


def judge(answer: schemathesis.Response, sent: str) -> None:
    exchange = f"{answer.status_code} {answer.content[:400]!r} to {sent[:600]}"
    assert answer.status_code < 500, exchange
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == ["application/json"], exchange
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}, exchange


def attack(url: str, cases: int, seed: int | None) -> Counter[int]:
    """Ask `cases` times, spread over the operations; those with a body get nearly all."""
    document = httpx.get(f"{url}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    operations = [found.ok() for found in schema.get_all_operations()]
    shares = [10 if operation.method == "post" else 1 for operation in operations]
    statuses: Counter[int] = Counter()
    deadline = time.monotonic() + SECONDS
    session = requests.Session()
    for operation, share in zip(operations, shares, strict=True):
        count = -(-cases * share // sum(shares))
        for mode in GenerationMode:
            try:
                strategy = operation.as_strategy(generation_mode=mode)
                each(strategy, count // 2 + 1, seed, url, session, statuses, deadline)
            except hypothesis.errors.Unsatisfiable:
                continue  # nothing of a bare GET can be wrong
    return statuses


def each(
    strategy: SearchStrategy[Case],
    count: int,
    seed: int | None,
    url: str,
    session: requests.Session,
    statuses: Counter[int],
    deadline: float,
) -> None:
    @hypothesis.settings(
        max_examples=count,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def ask(case: Case) -> None:
        assert time.monotonic() < deadline, f"{statuses} in {SECONDS} s"
        answer = case.call(base_url=url, session=session, timeout=60)
        statuses[answer.status_code] += 1
        judge(answer, f"{case.method} {case.path} {case.media_type} {case.body!r}")

    if seed is not None:
        ask = hypothesis.seed(seed)(ask)
    ask()


@pytest.mark.slow
def test_a_slice_of_all_cases(asked: ServingProcess) -> None:
    statuses = attack(asked.url, SLICE, None)
    print(dict(statuses))
    assert statuses[200] and statuses[400]


@pytest.mark.soak
def test_thousands_of_cases(asked: ServingProcess) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    began = time.monotonic()
    statuses = attack(asked.url, DEPTH, seed)
    print(f"{statuses.total()} cases in {time.monotonic() - began:.0f} s: {dict(statuses)}")
    assert statuses.total() >= 5_000
