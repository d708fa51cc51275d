"""A scheduler that answers from a script, for the API server's tests, and a worker's tables."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from msgspec.structs import replace
from pds_engine.config import EngineConfig
from pds_engine.messages import (
    Admit,
    AnyMessage,
    Cancel,
    Drain,
    Failed,
    Hello,
    Message,
    State,
    Submit,
    Token,
    Welcome,
)
from pds_engine.parallel.collectives import ALONE, VocabShard
from pds_engine.runner.batch import Batch
from pds_engine.runner.sampling import kernel, logprobs, sample
from pds_engine.runner.tables import HostSlot, Tables
from pds_engine.server.app import create_app
from pds_engine.server.inbox import Arrival, Inbox
from pds_engine.server.scheduler_client import SchedulerClient
from pds_engine.text.tokenizer import Tokenizer
from pds_engine.wire import decode, encode

TINY = Path(__file__).parents[3] / "examples" / "models" / "tiny"
KEY = b"k" * 32
Script = Callable[[Submit], Iterable[Token | Failed]]
IDLE = State(kv_used=3, kv_total=64, ranks_ready=1, kv_fingerprint="f00d")


def outputs(ids: list[int], *, end: str = "stop", cached: int = 0) -> Script:
    """A script that answers every request with `ids`, cut at its max_tokens."""

    def script(submit: Submit) -> Iterable[Token]:
        known = len(submit.output_ids)
        for index in range(known, len(ids)):
            full = index + 1 == submit.sampling.max_tokens
            last = full or index + 1 == len(ids)
            yield Token(
                request_id=submit.request_id,
                index=index,
                token=ids[index],
                finish_reason=("length" if full else end) if last else None,
                cached_tokens=cached if index == known else 0,
            )
            if last:
                return

    return script


def travelled(message: Message) -> AnyMessage:
    """The message after encoding and decoding, as on a wire."""
    return decode(encode(message))


class FakeScheduler:
    """The other end of a SchedulerClient's link, in this process; messages travel as bytes do."""

    def __init__(self, script: Script, incarnation: str = "inc") -> None:
        self.script = script
        self.incarnation = incarnation
        self.received: list[Message] = []
        self.inbound: asyncio.Queue[AnyMessage] = asyncio.Queue()
        self.died = asyncio.Event()
        self._changed = asyncio.Event()

    async def send(self, sent: Message) -> None:
        message = travelled(sent)
        self.received.append(message)
        if isinstance(message, Hello):
            self.inbound.put_nowait(Welcome(incarnation=self.incarnation))
            self.inbound.put_nowait(IDLE)
        if isinstance(message, Submit):
            for answer in self.script(message):
                self.inbound.put_nowait(travelled(answer))
        if isinstance(message, Drain):
            self.inbound.put_nowait(replace(IDLE, draining=True))
        self._changed.set()

    async def receive(self) -> AnyMessage:
        return await self.inbound.get()

    def waiting(self) -> AnyMessage | None:
        return None if self.inbound.empty() else self.inbound.get_nowait()

    async def lost(self) -> None:
        await self.died.wait()

    def close(self) -> None:
        self.died.set()

    def of(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.received if isinstance(message, kind)]

    async def until(self, kind: type[Message], count: int = 1) -> list[Message]:
        """Wait, at most 5 s, until `count` messages of `kind` have come."""
        async with asyncio.timeout(5):
            while len(self.of(kind)) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.of(kind)

    def cancelled(self) -> set[str]:
        return {m.request_id for m in self.received if isinstance(m, Cancel)}


@dataclass
class Served:
    """A started application around a fake scheduler."""

    client: httpx.AsyncClient
    scheduler: FakeScheduler
    scheduler_client: SchedulerClient
    config: EngineConfig


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@asynccontextmanager
async def serve(
    script: Script, tokenizer: Tokenizer, capacity: int = 16, **settings: object
) -> AsyncIterator[Served]:
    config = EngineConfig.model_validate(
        {"model": {"name": "tiny"}, "kv": {"lease_seconds": 0.01}, **settings}
    )
    scheduler = FakeScheduler(script)
    scheduler_client = SchedulerClient(
        [lambda: scheduler], group="local", incarnation="inc", capacity=capacity
    )
    app = create_app(scheduler_client, config, tokenizer, key=KEY)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://engine") as client,
    ):
        async with asyncio.timeout(5):
            while scheduler_client.state is None:  # noqa: ASYNC110  the fake reports at once
                await asyncio.sleep(0)
        yield Served(client, scheduler, scheduler_client, config)


async def next_of(inbox: Inbox) -> list[Arrival]:
    """What comes to the inbox next."""
    came = asyncio.Event()
    inbox.notify = came.set
    async with asyncio.timeout(5):
        while not inbox.waiting:
            await came.wait()
    return inbox.take()


@pytest.fixture
def taken() -> Callable[[Inbox], Awaitable[list[Arrival]]]:
    return next_of


class TurnCounter:
    """A task and a thread that count their turns: what keeps the loop, or the lock, keeps them."""

    def __init__(self) -> None:
        self.loop = 0
        self.thread = 0
        self._stop = threading.Event()
        self._counter = threading.Thread(target=self._count, daemon=True)

    async def __aenter__(self) -> "TurnCounter":
        self._counter.start()
        self._task = asyncio.create_task(self._tick())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        self._task.cancel()
        self._counter.join()

    async def _tick(self) -> None:
        while True:
            self.loop += 1
            await asyncio.sleep(0)

    def _count(self) -> None:
        while not self._stop.wait(0.001):
            self.thread += 1


@pytest.fixture
def turns() -> type[TurnCounter]:
    return TurnCounter


@pytest.fixture
def served(tokenizer: Tokenizer) -> Serve:
    """`async with served(script, **settings) as s:` a server whose scheduler follows `script`."""

    return partial(serve, tokenizer=tokenizer)


@pytest.fixture
def script() -> Callable[..., Script]:
    return outputs


@pytest.fixture
def silent() -> Script:
    """A script that answers nothing."""
    return lambda _: ()


class SamplingWorker:
    """A worker's tables, and the sampling of its rows: what a request's numbers end up in."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._tables = Tables(1, 4, 16, vocabulary, 0, torch.device("cpu"))

    def take(self, submit: Submit) -> int:
        """Admit the request, sample its next token from rising logits, and release it."""
        order = travelled(
            Admit(
                slot=0,
                gen=0,
                prompt_ids=submit.prompt_ids,
                output_ids=submit.output_ids,
                sampling=submit.sampling,
                seed=submit.seed,
                pages=(0,),
            )
        )
        self._tables.admit(order)
        known = order.prompt_ids + order.output_ids
        slot = HostSlot(0, len(order.prompt_ids), known, order.sampling, order.seed)
        rows = ((slot, len(order.output_ids)),)
        nought = torch.zeros(1, dtype=torch.int64)
        batch = Batch(nought, nought, None, nought, nought, rows)  # type: ignore[arg-type]
        logits = torch.linspace(-4.0, 4.0, self._vocabulary).unsqueeze(0)
        vocab = VocabShard(range(self._vocabulary), self._vocabulary, ALONE)
        gumbel_max = kernel(vocab, logits.device)
        tokens = sample(logits, batch, self._tables, vocab, gumbel_max)
        self._tables.sampled(nought, tokens)
        asked, scores = logprobs(logits, tokens, rows, vocab)
        chances = dict(zip(asked, scores.read(), strict=True)) if scores else {}
        for index, token in enumerate(tokens.tolist()):
            chance = chances.get(index)
            travelled(Token(request_id="r", index=index, token=token, logprobs=chance))
        self._tables.release(0, 0)
        (token,) = tokens.tolist()
        return int(token)


@pytest.fixture(scope="session")
def worker(tokenizer: Tokenizer) -> SamplingWorker:
    return SamplingWorker(tokenizer.vocabulary)


@pytest.fixture
def key() -> bytes:
    return KEY


def events(text: str) -> list[Any]:
    """The data of a stream's events; the end mark stays a string."""
    blocks = [block for block in text.split("\n\n") if block]
    data = [line[6:] for b in blocks for line in b.split("\n") if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


@pytest.fixture
def read_events() -> Callable[[str], list[Any]]:
    return events
