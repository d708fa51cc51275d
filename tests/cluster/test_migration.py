"""kill -9 of a decode worker under load: its streams go on in the other group, nobody sees it."""

import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import httpx
import pytest
from serving import Serving
from streams import Body, StreamOutcome, ask, data_of, known, opened, text_of
from workers import WorkerProcess, comes_back, label

pytestmark = pytest.mark.cluster

CLIENTS, EACH = 8, 25
LONG: Body = {"max_tokens": 60, "ignore_eos": True, "skip_special_tokens": False}


@pytest.fixture(scope="module")
def served(chat: Serving) -> Serving:
    chat.sized(prefill=1, decode=2)
    return chat


def watched(serving: Serving, body: Body) -> tuple[str, float]:
    """A stream's text, and the longest silence within it in seconds."""
    with httpx.Client() as client, opened(serving.url, body, client) as answer:
        events, times = [], []
        for data in data_of(answer):
            events.append(data)
            times.append(time.monotonic())
    assert events[-1] == "[DONE]", events[-1]
    silence = max(after - before for before, after in pairwise(times))
    return "".join(map(text_of, events[:-1])), silence


def moved(serving: Serving) -> dict[str, float]:
    """The router's migrations by reason."""
    (router,) = serving.pods("router")
    with urllib.request.urlopen(f"http://{router['status']['podIP']}:9090/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = (line.partition("{")[2].split("} ") for line in lines if _NAME in line)
    return {reason.split('"')[1]: float(count) for reason, count in found}


_NAME = "pds_router_migrations_total{"


def test_a_killed_decode_worker_under_load_fails_no_request(served: Serving) -> None:
    prompts = [{**LONG, "prompt": list(range(16 + 9 * i, 140 + 9 * i))} for i in range(4)]
    long = [(body, watched(served, body)[0]) for body in prompts]
    tasks = [(question.body, question.answer) for question in known(served, at_least=4)]
    questions = [pair for both in zip(long, tasks, strict=True) for pair in both]
    _, victim = served.pods("decode")
    before = sum(moved(served).values())
    outcomes: list[StreamOutcome] = []

    def one(client: int) -> None:
        with httpx.Client() as http:
            for turn in range(EACH):
                body, wanted = questions[(client + turn) % len(questions)]
                outcomes.append(ask(served.url, body, client=http, wanted=wanted))

    with ThreadPoolExecutor(CLIENTS + 2) as pool:
        working = [pool.submit(one, client) for client in range(CLIENTS)]
        served.until("at work", lambda: len(outcomes) >= CLIENTS, 120)
        served.until("decoding", lambda: served.state(victim)["running"] >= 2, 60)
        beside = [pool.submit(watched, served, prompts[0]) for _ in range(2)]
        killed = WorkerProcess(victim).kill()
        for each in working:
            each.result()
        silence = max(each.result()[1] for each in beside)
    took = time.monotonic() - killed
    troubles = [outcome.trouble for outcome in outcomes if outcome.trouble]
    back = comes_back(
        served, "decode", label(victim, "group"), label(victim, "attempt") + 1, killed
    )
    print(f"{len(troubles)} of {len(outcomes)} requests failed, {sum(moved(served).values()):.0f}")
    print(f"  streams went on elsewhere ({moved(served)}); the longest silence beside them was")
    print(
        f"  {silence:.1f} s; load done {took:.0f} s after the kill, the group back in {back:.1f} s"
    )
    assert troubles == []
    assert len(outcomes) == CLIENTS * EACH
    assert sum(moved(served).values()) >= before + 2
