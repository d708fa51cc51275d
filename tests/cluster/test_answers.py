"""Greedy answers through the endpoint, P and D in different pods, against transformers'.

Each test prints its counts (`pytest -s`). What may differ: in float32, a prompt from the step on
at which the top two scores are closer than 1e-4; in bfloat16, a prompt with a step at which they
are closer than 0.5, of which there may be one in twenty.
"""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import torch
from pds_cluster.testing import Cluster
from pds_engine.text.tokenizer import Tokenizer
from reference import Greedy, Reference
from serving import MODEL, Serving, manifest
from streams import Task, tasks_of_the_model

pytestmark = pytest.mark.cluster
torch.set_num_threads(1)

TIE = 1e-4
SURE = 0.5
STEPS = 16
TOP = 8
APART = 1e-3
"""Bound on the difference of two logprobs in float32. Greedy tokens seldom show a wrong page; these
do: other content in one page, tried once for each prompt of 100 tokens or more, moved some of the
best eight by more than 0.1 every time."""
LENGTHS = (10, 15, 16, 17, 127, 128, 129, 256, 257, 1500, *range(40, 1500, 37))[:50]
"""Tokens of the float32 prompts: around pages of 16 and chunks of 128, and evenly between."""
FEW = frozenset([*range(10), *range(10, 50, 4)])
"""Which of them CI asks."""
TASKS, SOME = 200, 80
"""Of the bfloat16 tasks, and how many of them CI asks."""
PARTS = [pytest.param(True, id="few"), pytest.param(False, id="rest", marks=pytest.mark.soak)]


@contextmanager
def pair(
    cluster: Cluster, namespace: str, name: str, dtype: str, backends: list[str]
) -> Iterator[Serving]:
    """One prefill and one decode pod, gone again when the block ends."""
    spec = manifest(name)["spec"]
    served = Serving(
        cluster,
        namespace,
        manifest(
            name,
            model={**spec["model"], "dtype": dtype},
            engine={**spec["engine"], "kvBackends": backends},
        ),
    )
    served.apply()
    served.settled()
    yield served
    cluster.kubectl("-n", namespace, "delete", "pds", name, "--timeout=60s")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(MODEL)


# ---- float32 -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExpectedTokens:
    prompt: list[int]
    greedy: Greedy


@pytest.fixture(scope="module", params=PARTS)
def expected(operator: Cluster, request: pytest.FixtureRequest) -> list[ExpectedTokens]:
    """Prompts, random ids and ends of recall tasks by turns, and what transformers says."""
    reference = Reference(MODEL, torch.float32)
    rng = random.Random("answers")
    prompts = []
    for number, length in enumerate(LENGTHS):
        if number % 2:
            prompts.append([rng.randrange(6, 1536) for _ in range(length)])
        else:
            task = tasks_of_the_model().draw("recall", 5000 + number, max(length, 60), 2)
            prompts.append(reference.chat(task.messages)[-length:])
    assert [len(prompt) for prompt in prompts] == list(LENGTHS)
    chosen = [prompt for n, prompt in enumerate(prompts) if (n in FEW) == request.param]
    return [ExpectedTokens(prompt, reference.generate(prompt, STEPS)) for prompt in chosen]


@pytest.fixture(scope="module", params=["tcp", "nixl"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, operator: Cluster, namespace: str, backend: str
) -> Iterator[Serving]:
    """A pair whose pages go by that backend: where both are offered and no fabric is, tcp."""
    if backend == "tcp":
        yield request.getfixturevalue("chat")
        return
    with pair(operator, namespace, f"float32-{backend}", "float32", [backend]) as serving:
        yield serving


def test_float32_tokens_equal_transformers(
    served: Serving, backend: str, expected: list[ExpectedTokens], tokenizer: Tokenizer
) -> None:
    with httpx.Client() as client, ThreadPoolExecutor(4) as clients:

        def said(one: ExpectedTokens) -> dict[str, Any]:
            options = {"max_tokens": STEPS, "ignore_eos": True, "logprobs": TOP}
            answer = served.complete(client, one.prompt, **options)
            assert answer.status_code == 200, answer.text
            scored: dict[str, Any] = answer.json()["choices"][0]["logprobs"]
            return scored

        replies = list(clients.map(said, expected))
    ids = {tokenizer.piece(id).decode(errors="replace"): id for id in range(tokenizer.vocabulary)}
    del ids["\ufffd"]  # parts of characters, which the endpoint spells alike
    equal, ties, wrong, apart = 0, [], [], 0.0
    for one, scored in zip(expected, replies, strict=True):
        greedy = one.greedy
        step = greedy.differs([ids.get(token, -1) for token in scored["tokens"]])
        if step is None:
            equal += 1
        else:
            difference = (len(one.prompt), step, greedy.leads[step])
            (ties if greedy.leads[step] < TIE else wrong).append(difference)
        for ours, theirs in zip(greedy.logprobs[:step], scored["top_logprobs"], strict=False):
            known = {ids[token]: value for token, value in theirs.items() if token in ids}
            assert len(known) >= TOP // 2
            apart = max(apart, *(abs(value - float(ours[id])) for id, value in known.items()))
    least = min(lead for one in expected for lead in one.greedy.leads)
    print(
        f"\nfloat32 by {backend}: {equal} of {len(expected)} prompts equal in {STEPS} tokens, "
        f"{len(ties)} differ at a tie (top two closer than {TIE}); closest top two: {least:.2g}; "
        f"scores of the best {TOP} tokens differ by {apart:.1g} at most"
    )
    assert wrong == [], "(prompt tokens, step, lead of the best score)"
    assert equal + len(ties) == len(expected)
    assert apart < APART
    assert went_by(served) == {f"kv pages go by {backend}"}


def went_by(served: Serving) -> set[str]:
    """What the prefill pod's log says of backends that were used."""
    (pod,) = served.pods("prefill")
    name = pod["metadata"]["name"]
    log = served.cluster.kubectl("-n", served.namespace, "logs", name, "-c", "engine")
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    said = {str(line.get("message")) for line in lines}
    return {message for message in said if message.startswith("kv pages go by")}


# ---- bfloat16 ------------------------------------------------------------------------------------


def fresh_tasks() -> list[Task]:
    """120 recalls of 4 to 12 keys in 300 to 1,000 tokens, and 80 copies of 60 to 140 words."""
    rng = random.Random("fresh")
    recalls = [
        tasks_of_the_model().draw("recall", 7000 + n, rng.randint(300, 1000), rng.randint(4, 12))
        for n in range(120)
    ]
    copies = [
        tasks_of_the_model().draw("copy", 7000 + n, None, rng.randint(60, 140)) for n in range(80)
    ]
    mixed = recalls + copies
    rng.shuffle(mixed)
    return mixed


@dataclass(frozen=True)
class TaskAnswer:
    text: str
    finish_reason: str
    ids: list[int]
    """Of all output tokens, the end of text too."""
    prompt_tokens: int


def ask(client: httpx.Client, url: str, task: Task, ids: dict[bytes, int]) -> TaskAnswer:
    body = {
        "model": "tiny", "messages": task.messages, "temperature": 0,
        "max_tokens": 400, "logprobs": True,
    }  # fmt: skip
    answer = client.post(f"{url}/v1/chat/completions", json=body, timeout=180)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    output = [ids[bytes(token["bytes"])] for token in choice["logprobs"]["content"]]
    return TaskAnswer(
        choice["message"]["content"],
        choice["finish_reason"],
        output,
        answer.json()["usage"]["prompt_tokens"],
    )


@pytest.fixture(scope="module")
def narrow(operator: Cluster, namespace: str) -> Iterator[Serving]:
    with pair(operator, namespace, "bfloat16", "bfloat16", ["nixl", "tcp"]) as serving:
        yield serving


@pytest.fixture(scope="module", params=PARTS)
def answers(
    narrow: Serving, tokenizer: Tokenizer, request: pytest.FixtureRequest
) -> list[tuple[Task, TaskAnswer]]:
    """Tasks and their answers in bfloat16, 16 clients at a time."""
    ids = {tokenizer.piece(id): id for id in range(tokenizer.vocabulary)}
    assert len(ids) == tokenizer.vocabulary
    asked = fresh_tasks()
    assert len(asked) == TASKS
    asked, url = asked[:SOME] if request.param else asked[SOME:], narrow.url
    with httpx.Client() as client, ThreadPoolExecutor(16) as clients:
        replies = clients.map(lambda task: ask(client, url, task, ids), asked)
        return list(zip(asked, replies, strict=True))


def test_bfloat16_answers_are_right(answers: list[tuple[Task, TaskAnswer]]) -> None:
    right = {
        kind: [
            answer.text == task.answer and answer.finish_reason == "stop"
            for task, answer in answers
            if task.kind == kind
        ]
        for kind in ("recall", "copy")
    }
    shown = ", ".join(f"{kind} {sum(each)} of {len(each)}" for kind, each in right.items())
    print(f"\nbfloat16, 16 clients: right: {shown}")
    assert sum(map(sum, right.values())) >= 0.98 * len(answers)


def test_bfloat16_tokens_equal_transformers(answers: list[tuple[Task, TaskAnswer]]) -> None:
    reference = Reference(MODEL, torch.bfloat16)
    equal, sure, wrong = 0, 0, []
    for task, answer in answers:
        prompt = reference.chat(task.messages)
        assert answer.prompt_tokens == len(prompt)
        greedy = reference.follow(prompt, answer.ids)
        step = greedy.differs(answer.ids)
        lead = min(greedy.leads[: None if step is None else step + 1])
        equal += step is None
        sure += lead >= SURE
        if step is not None and lead >= SURE:
            wrong.append((task.kind, len(prompt), step, lead))
    print(
        f"\nbfloat16: {sure} of {len(answers)} prompts lead by {SURE} at every step, "
        f"{len(wrong)} of them differ; {equal} of all equal"
    )
    assert wrong == [], "(kind, prompt tokens, step, least lead up to it)"
    assert sure >= 0.95 * len(answers)
