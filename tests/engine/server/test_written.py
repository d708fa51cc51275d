"""A stream is written from the callback of the scheduler's socket, once for all that has come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from pds_engine.messages import Submit, Token
from pds_engine.server.answers import Frame, encode
from pds_engine.server.completion import Completion, CompletionChoice

BODY = {"prompt": "a", "max_tokens": 9, "stream": True, "ignore_eos": True}


@dataclass
class SlowClient:
    """The other end of an ASGI call. It reads while `reads` is set."""

    bodies: list[bytes] = field(default_factory=list)
    reads: asyncio.Event = field(default_factory=asyncio.Event)
    begun: int = 0

    async def receive(self) -> dict[str, Any]:
        if not self.begun:
            self.begun = 1
            return {"type": "http.request", "body": msgspec.json.encode(self.body)}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, message: Any) -> None:
        if not self.reads.is_set():
            await self.reads.wait()
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])

    body: dict[str, object] = field(default_factory=lambda: dict(BODY))

    async def until(self, bodies: int) -> None:
        async with asyncio.timeout(5):
            while len(self.bodies) < bodies:  # noqa: ASYNC110  the server writes in its own turns
                await asyncio.sleep(0)


SCOPE = {
    "type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions",
    "query_string": b"", "headers": [(b"content-type", b"application/json")], "root_path": "",
    "scheme": "http", "server": ("engine", 80), "client": ("c", 1), "http_version": "1.1",
}  # fmt: skip


@asynccontextmanager
async def answering(served: Any, client: SlowClient) -> AsyncIterator[asyncio.Task[None]]:
    app = served.client._transport.app
    task = asyncio.create_task(app(dict(SCOPE), client.receive, client.send))
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def tokens(submits: list[Submit], index: int, ids: list[int], last: bool = False) -> list[Token]:
    return [
        Token(
            request_id=s.request_id, index=index, token=id, finish_reason="length" if last else None
        )
        for s, id in zip(submits, ids, strict=True)
    ]


async def test_tokens_that_come_together_are_one_write(served, silent, tokenizer):
    a, b = tokenizer.encode("one two")[:2]
    async with served(silent) as s:
        client = SlowClient(body={**BODY, "n": 3})
        client.reads.set()
        async with answering(s, client) as task:
            submits = await s.scheduler.until(Submit, 3)
            for step, ids in enumerate([[a, b, a], [b, a, b], [a, a, a]]):
                for token in tokens(submits, step, ids):
                    s.scheduler.inbound.put_nowait(token)
                await client.until(step + 1)
            assert [body.count(b"data: ") for body in client.bodies] == [3, 3, 3]
            for token in tokens(submits, 3, [a, b, a], last=True):
                s.scheduler.inbound.put_nowait(token)
            async with asyncio.timeout(5):
                await task
    assert len(client.bodies) == 4
    assert client.bodies[-1].endswith(b"data: [DONE]\n\n")


async def test_a_client_that_reads_late_gets_all_in_order(served, silent, tokenizer):
    ids = tokenizer.encode("one two three four five six")
    async with served(silent) as s:
        client = SlowClient()
        client.reads.set()
        async with answering(s, client) as task:
            submits = await s.scheduler.until(Submit)
            for at, id in enumerate(ids):
                last = at + 1 == len(ids)
                s.scheduler.inbound.put_nowait(tokens(submits, at, [id], last)[0])
                if at == 1:
                    await client.until(2)
                    client.reads.clear()  # the third token's write begins, and waits
                await asyncio.sleep(0.01)
            assert len(client.bodies) == 2
            client.reads.set()
            async with asyncio.timeout(5):
                await task
    events = [line[6:] for line in b"".join(client.bodies).split(b"\n") if line[:6] == b"data: "]
    texts = [msgspec.json.decode(one)["choices"][0]["text"] for one in events[:-1]]
    assert "".join(texts) == tokenizer.decode(ids)
    assert events[-1] == b"[DONE]"


@pytest.mark.parametrize("text", ["", " the", '"text":""', "\\", "é€😀", "\n\u2028", "\x00"])
def test_a_frame_is_what_the_whole_would_be(text: str):
    def whole(text: str) -> bytes:
        return encode(
            Completion('"text":""', 1, "m", [CompletionChoice(0, text, None, None, None)])
        )

    assert Frame(whole(""), b"text").around(text) == whole(text)
