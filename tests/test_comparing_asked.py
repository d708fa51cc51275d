"""benchmarks/comparing: how engines are asked, as servers and as processes."""

import asyncio
import json
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from comparing import proxy
from comparing.client import Answer, stream, together
from comparing.memory import Watch, below
from comparing.sessions import HERE, Failed, Session

# ---- asking --------------------------------------------------------------------------------------


Reply = Callable[[str, dict[str, Any]], bytes]


async def served(reply: Reply, use: Callable[[str], Any]) -> Any:
    """`use` with the URL of a server that replies so."""

    async def answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        writer.write(reply(head.decode(), body))
        writer.close()

    server = await asyncio.start_server(answer_one, "127.0.0.1", 0)
    async with server:
        return await use(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")


def events(*texts: str, end: bytes = b"data: [DONE]\n\n") -> bytes:
    lines = [b'data: {"choices":[{"text":%b}]}\n\n' % json.dumps(text).encode() for text in texts]
    return b"HTTP/1.1 200 OK\r\n\r\n: a journal\n" + b"".join(lines) + end


async def test_events_with_text_are_tokens() -> None:
    asked = []

    def reply(head: str, body: dict[str, Any]) -> bytes:
        asked.append((head.partition("\r\n")[0], body["prompt"], body["max_tokens"]))
        return events("a", "b", "")

    (found,) = await served(reply, lambda url: together(url, [[5, 6]], 2))
    assert asked == [("POST /v1/completions HTTP/1.1", [5, 6], 2)]
    assert len(found.times) == 2 and found.first > 0 and len(found.gaps) == 1


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 429 Too Many Requests\r\n\r\nfull", "429"),
        (events("a", end=b""), "broke off"),
        (events("a", end=b'data: {"error":{"message":"no"}}\n\n'), '"no"'),
    ],
)
async def test_what_is_refused_or_breaks_off_is_no_answer(said: bytes, why: str) -> None:
    found = await served(lambda head, body: said, lambda url: stream(url, [5], 2))
    assert why in found.error
    with pytest.raises(RuntimeError, match="http://"):
        await served(lambda head, body: said, lambda url: together(url, [[5]], 2))


async def test_the_proxy_hands_pages_over_as_vllm_documents_it() -> None:
    """One token of the prefill server, which keeps the pages; the rest of the decode server."""
    kept = {"do_remote_prefill": True, "remote_block_ids": [4], "remote_port": 5}
    asked: dict[str, tuple[dict[str, Any], str]] = {}

    def name(head: str) -> str:
        return head.partition("x-request-id: ")[2].partition("\r\n")[0]

    def prefill(head: str, body: dict[str, Any]) -> bytes:
        asked["prefill"] = body, name(head)
        text = json.dumps({"choices": [], "kv_transfer_params": kept}).encode()
        return b"HTTP/1.1 200 OK\r\n\r\n" + text

    def decode(head: str, body: dict[str, Any]) -> bytes:
        asked["decode"] = body, name(head)
        return events("a", "b")

    async def pair(prefill_url: str) -> Answer:
        async def through(decode_url: str) -> Answer:
            handler = proxy.Proxy(prefill_url, decode_url).serve
            async with await asyncio.start_server(handler, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                return await stream(f"http://127.0.0.1:{port}", [5, 6], 2)

        return await served(decode, through)

    found = await served(prefill, pair)
    assert (found.error, len(found.times)) == ("", 2)
    first, second = asked["prefill"][0], asked["decode"][0]
    assert (first["max_tokens"], first["stream"]) == (1, False)
    assert first["kv_transfer_params"]["do_remote_decode"] is True
    assert (second["max_tokens"], second["stream"]) == (2, True)
    assert second["kv_transfer_params"] == kept
    assert asked["prefill"][1] == asked["decode"][1] != ""


# ---- processes -----------------------------------------------------------------------------------


ENGINE = """
    import sys, time
    sys.path.insert(0, {here!r})
    from drive import serve

    class Counts:
        def __init__(self, settings):
            print("loading", settings["name"])
            self.settings = settings
        def first(self, prompts):
            return [prompt[-1] for prompt in prompts]
        def prefill(self, prompts):
            return float(sum(map(len, prompts)))
        def decode(self, prompts, steps):
            if not prompts:
                raise ValueError("nothing to decode")
            return [0.5] * steps

    serve(Counts)
"""


@pytest.fixture
def engine(tmp_path: Path):
    script = tmp_path / "engine.py"
    script.write_text(textwrap.dedent(ENGINE).format(here=str(HERE)))
    log = tmp_path / "log"
    session = Session("counts", [sys.executable, str(script)], {"name": "tiny"}, {}, log)
    yield session
    session.end()


def wait_until_stopped(pid: int) -> None:
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert found is not None and found.si_code == os.CLD_STOPPED


def test_an_engine_is_stopped_while_it_is_not_asked(engine: Session) -> None:
    assert engine.loaded(60) >= 0
    wait_until_stopped(engine.pid)
    assert engine.prefill([[1, 2], [3]], 60) == 3.0
    assert engine.first([[1, 2], [3]], 60) == [2, 3]
    assert engine.decode([[1]], 3, 60) == [0.5] * 3
    wait_until_stopped(engine.pid)
    assert "loading tiny" in engine.log.read_text()  # and not among the answers


def test_an_engine_that_fails_says_what_it_said(engine: Session) -> None:
    engine.loaded(60)
    with pytest.raises(Failed, match=r"(?s)counts: ended: .*nothing to decode"):
        engine.decode([], 1, 60)


def test_an_engine_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    session = Session("silent", words, {}, {}, tmp_path / "log")
    with pytest.raises(Failed, match=r"silent: no answer in 0.2 s"):
        session.loaded(0.2)
    session.end()


def test_memory_is_that_of_a_process_and_what_it_started() -> None:
    assert os.getpid() in below(os.getppid())
    with Watch(os.getppid()) as watch:
        pass
    told = watch.told()
    assert told["peak_gb"] >= told["own_gb"] > 0
