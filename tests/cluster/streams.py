"""Clients that stream: what each of them got, and how long it took."""

import importlib.util
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from types import ModuleType
from typing import Any, Protocol

import httpx
from serving import ROOT, Serving

TIMEOUT = 60.0
"""Seconds that a client waits for the next byte."""
REST = 0.5
"""Seconds between an answer and the next question, where load is not the subject: clients that
never rest take both cores, and all that starts meanwhile takes twice as long."""
Body = dict[str, Any]


class Task(Protocol):
    """A prompt of examples/models/train/tasks.py, which is in no package."""

    messages: list[dict[str, str]]
    answer: str
    kind: str


@dataclass(frozen=True)
class Question:
    """A chat whose one right answer is known."""

    messages: tuple[dict[str, str], ...]
    answer: str
    max_tokens: int = 80

    @property
    def body(self) -> Body:
        return {"messages": list(self.messages), "max_tokens": self.max_tokens}


@dataclass(frozen=True)
class StreamOutcome:
    """What became of one request. `error` is empty for a stream that came whole, up to [DONE]."""

    began: float
    ended: float
    text: str
    error: str = ""
    wanted: str | None = None
    first: float | None = None
    """When the first of the text came."""
    request_id: str = ""
    """As the router names it."""

    @property
    def ttft(self) -> float | None:
        """Seconds to the first of the text; None where none came."""
        return None if self.first is None else self.first - self.began

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def trouble(self) -> str:
        """Why this is not what the client should have got; empty when it is."""
        if self.error:
            return f"{self.error} (after {self.seconds:.1f} s and {len(self.text)} characters)"
        if self.wanted is not None and self.text != self.wanted:
            return f"{self.text!r} came where {self.wanted!r} is right"
        return ""


@dataclass(frozen=True)
class LoadPhase:
    """A stretch of time in which requests began, in monotonic seconds."""

    name: str
    began: float
    ended: float

    def of(self, outcomes: list[StreamOutcome]) -> list[StreamOutcome]:
        """Those that began in it."""
        return [each for each in outcomes if self.began <= each.began < self.ended]

    def summary(self, outcomes: list[StreamOutcome]) -> str:
        """A line about them."""
        own = self.of(outcomes)
        return (
            f"{self.name}: {self.ended - self.began:.0f} s, {len(own)} requests, "
            f"{sum(bool(each.error) for each in own)} failed, time to the first token "
            f"p50 {ttft(own, 50):.2f} s, p99 {ttft(own, 99):.2f} s"
        )


def ttft(outcomes: list[StreamOutcome], percentile: int) -> float:
    """Of the seconds to the first token; two answers at the least."""
    times = [each.ttft for each in outcomes if each.ttft is not None]
    return statistics.quantiles(times, n=100)[percentile - 1]


def ask(
    url: str,
    body: Body,
    *,
    client: httpx.Client,
    wanted: str | None = None,
    timeout: float = TIMEOUT,
) -> StreamOutcome:
    """Stream a chat or a completion to its end."""
    began = time.monotonic()
    text, error, first, request_id = "", "", None, ""
    try:
        with opened(url, body, client, timeout) as answer:
            request_id = answer.headers.get("x-request-id", "")
            if answer.status_code != 200:
                error = f"HTTP {answer.status_code}: {answer.read().decode()}"
            else:
                last = ""
                for last in data_of(answer):
                    if last != "[DONE]":
                        text += text_of(last)
                        first = first or (time.monotonic() if text else None)
                if last != "[DONE]":
                    error = f"the stream ended with {last}"
    except httpx.HTTPError as broken:
        error = f"{type(broken).__name__}: {broken}"
    return StreamOutcome(began, time.monotonic(), text, error, wanted, first, request_id)


@contextmanager
def opened(
    url: str, body: Body, client: httpx.Client, timeout: float = TIMEOUT
) -> Iterator[httpx.Response]:
    """The answer to a streaming request, its body not read yet."""
    path = "chat/completions" if "messages" in body else "completions"
    whole = {"model": "tiny", "temperature": 0, "stream": True, **body}
    with client.stream("POST", f"{url}/v1/{path}", json=whole, timeout=timeout) as answer:
        yield answer


def data_of(answer: httpx.Response) -> Iterator[str]:
    """The data of each event."""
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")


def text_of(data: str) -> str:
    """What an event adds to the answer."""
    event = json.loads(data)
    if "error" in event or not event["choices"]:
        return ""
    choice = event["choices"][0]
    return str(choice["delta"].get("content") or "" if "delta" in choice else choice["text"])


def known(serving: Serving, at_least: int, sizes: tuple[int, ...] = (128, 300)) -> list[Question]:
    """Questions that the model answers right while nothing else happens.

    Each answer depends on facts in all of its context, so that a lost page shows.
    """
    tasks = tasks_of_the_model()
    drawn = [
        tasks.draw("recall", seed, sizes[seed % len(sizes)], 4) for seed in range(2 * at_least)
    ]
    return _right(
        serving, [Question(tuple(task.messages), task.answer) for task in drawn], at_least
    )


def copies(serving: Serving, at_least: int, words: int) -> list[Question]:
    """Such questions with long answers: a text of so many words, to be said again."""
    tasks = tasks_of_the_model()
    drawn = [tasks.draw("copy", seed, None, words) for seed in range(2 * at_least)]
    asked = [Question(tuple(task.messages), task.answer, 4 * words) for task in drawn]
    return _right(serving, asked, at_least)


def _right(serving: Serving, drawn: list[Question], at_least: int) -> list[Question]:
    """The first so many that are answered right."""
    found: list[Question] = []
    with httpx.Client() as client:
        for question in drawn:
            got = ask(serving.url, question.body, wanted=question.answer, client=client)
            if got.error:
                raise AssertionError(f"the quiet endpoint fails: {got.error}")
            if not got.trouble:
                found.append(question)
            if len(found) == at_least:
                return found
    raise AssertionError(f"{len(found)} of {len(drawn)} quiet answers are right")


@cache
def tasks_of_the_model() -> ModuleType:
    """examples/models/train/tasks.py, which is in no package."""
    spec = importlib.util.spec_from_file_location(
        "cluster_tasks", ROOT / "examples/models/train/tasks.py"
    )
    if spec is None or spec.loader is None:
        raise ImportError("examples/models/train/tasks.py cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass
class Crowd:
    """Clients that ask one question after the other until they are stopped."""

    clients: int
    outcomes: list[StreamOutcome] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def troubles(self) -> list[str]:
        return [outcome.trouble for outcome in self.outcomes if outcome.trouble]

    def goes_on(self, timeout: float = 120) -> None:
        """Wait for as many answers to requests that begin from now on as there are clients."""
        now, deadline = time.monotonic(), time.monotonic() + timeout
        while sum(outcome.began >= now for outcome in self.outcomes) < self.clients:
            if time.monotonic() > deadline:
                raise AssertionError(f"no new answers within {timeout} s: {self.troubles}")
            self.stop.wait(0.1)


@contextmanager
def crowd(
    url: str,
    questions: list[Question],
    *,
    clients: int,
    at_most: int = 300,
    seconds: float = 240,
    pause: float = 0,
    rest: float = 0,
) -> Iterator[Crowd]:
    """`clients` of them, each with a connection of its own, bounded in count and time.

    `pause`: seconds that one waits after a failure; `rest`: after an answer.
    """
    people, turns, deadline = Crowd(clients), count(), time.monotonic() + seconds

    def one() -> None:
        with httpx.Client() as client:
            for _ in range(at_most):
                if people.stop.is_set() or time.monotonic() > deadline:
                    return
                question = questions[next(turns) % len(questions)]
                got = ask(url, question.body, wanted=question.answer, client=client)
                people.outcomes.append(got)
                people.stop.wait(pause if got.error else rest)

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(one) for _ in range(clients)]
        try:
            yield people
        finally:
            people.stop.set()
        for each in running:
            each.result()


@contextmanager
def beside(work: Callable[[], StreamOutcome]) -> Iterator[Future[StreamOutcome]]:
    """`work` in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)
