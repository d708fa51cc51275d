"""The router's own refusals, byte for byte."""

import asyncio
import json

import pytest

CHAT = "/v1/chat/completions"
CLOSES = ["connection: close"]
CHUNK = b"5dc\r\n" + b"x" * 1500 + b"\r\n"
CHUNKED = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode()


def request(line, data=b"", length=None):
    """A request of so many bytes, of which `data` is sent."""
    length = len(data) if length is None else length
    return f"{line} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode() + data


def body(message, code="invalid_request", kind="invalid_request_error"):
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}})


ANSWERS = {
    "no such path": (
        request("GET /v2"),
        ("404 Not Found", [],
         body("GET /v2: Not Found (see /v1/models, /v1/chat/completions)")),
    ),
    "another method": (
        request("POST /v1/models"),
        ("405 Method Not Allowed", ["allow: GET"],
         body("POST /v1/models: Method Not Allowed (see /v1/models, /v1/chat/completions)")),
    ),
    "another method of what is relayed": (
        request(f"GET {CHAT}"),
        ("405 Method Not Allowed", ["allow: POST", *CLOSES], body(f"{CHAT} takes POST, not GET")),
    ),
    "a large body": (
        request(f"POST {CHAT}", b"x" * 3000),
        ("413 Request Entity Too Large", CLOSES,
         body("the body has 3000 bytes, the bound is 2048", "body_too_large")),
    ),
    "a large body of no stated length": (
        CHUNKED + CHUNK * 2,
        ("413 Request Entity Too Large", CLOSES,
         body("the body has more than 2048 bytes", "body_too_large")),
    ),
    "a body that does not come": (
        request(f"POST {CHAT}", b"{", length=2),
        ("408 Request Timeout", CLOSES,
         body("the body did not come within 0.2 seconds", "body_timeout")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_it_refuses(engine, router, name):
    sent, (status, headers, content) = ANSWERS[name]
    running = await router(await engine("unified"), max_body_bytes=2048, body_timeout=0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    writer.write(sent)
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    given = dict(line.split(": ", 1) for line in lines)
    assert (await reader.readexactly(int(given["content-length"]))).decode() == content
    writer.close()
    usual = ("content-length", "content-type", "date", "server")
    assert first == f"HTTP/1.1 {status}"
    assert [line for line in lines if line.split(":")[0] not in usual] == headers
    assert given["content-type"] == "application/json"


async def test_a_deadline_that_passes_within_a_stream_reads_as_the_engine_has_it(engine, router):
    kind = "timeout_error"
    content = {"error": {"message": "late", "type": kind, "param": None, "code": "deadline_passed"}}
    error = json.dumps(content).encode()

    async def late(seen, stream):
        await stream.head()
        await stream.put(b': pds 1 7\ndata: {"t":1}\n\n')
        await stream.put(b": pds failed 504 %b\n\n" % error)
        stream.end()

    one, other = await engine("unified", script=late), await engine("unified", script=late)
    running = await router(one, other)
    assert await running.stream() == b'data: {"t":1}\n\ndata: %b\n\n' % error
    assert len(one.calls) + len(other.calls) == 1
