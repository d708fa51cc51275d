"""vLLM's documented way from prefill to decode, as a proxy that does nothing else.

    python proxy.py --prefill URL --decode URL --port PORT

A request goes to the prefill server for one token, with `kv_transfer_params` that ask it to keep
the pages; what it answers there says where they are, and goes to the decode server with the
request. That one reads the pages over NIXL, and streams all tokens.
"""

import argparse
import asyncio
import json
import uuid
from typing import Any

PATH = b"/v1/completions"
KEEP = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
FAILED = b"HTTP/1.1 502 Bad Gateway\r\nconnection: close\r\n\r\n"


def to_prefill(body: dict[str, Any]) -> dict[str, Any]:
    """What the prefill server is asked: one token, not streamed."""
    asked = {key: value for key, value in body.items() if key != "stream_options"}
    return asked | {"max_tokens": 1, "stream": False, "kv_transfer_params": KEEP}


def to_decode(body: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """What the decode server is asked: all of it, from the pages that the answer names."""
    return body | {"kv_transfer_params": answer["kv_transfer_params"]}


async def ask(url: str, body: dict[str, Any], name: str) -> tuple[Any, Any]:
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    sent = json.dumps(body).encode()
    head = (
        f"POST {PATH.decode()} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"x-request-id: {name}\r\nconnection: close\r\ncontent-length: {len(sent)}\r\n\r\n"
    )
    writer.write(head.encode() + sent)
    return reader, writer


async def answered(url: str, body: dict[str, Any], name: str) -> dict[str, Any]:
    reader, writer = await ask(url, body, name)
    try:
        whole = await reader.read()
    finally:
        writer.close()
    head, _, text = whole.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise ValueError(whole[:500])
    if b"chunked" in head.lower():
        text = b"".join(text.split(b"\r\n")[1::2])
    found: dict[str, Any] = json.loads(text)
    return found


class Proxy:
    def __init__(self, prefill: str, decode: str) -> None:
        self._prefill, self._decode = prefill, decode

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if PATH not in head.partition(b"\r\n")[0]:
                writer.write(OK)
                return
            lines = head.lower().split(b"\r\n")
            (length,) = (int(each[15:]) for each in lines if each.startswith(b"content-length:"))
            body, name = json.loads(await reader.readexactly(length)), str(uuid.uuid4())
            answer = await answered(self._prefill, to_prefill(body), name)
            source, target = await ask(self._decode, to_decode(body, answer), name)
            try:
                while data := await source.read(65536):
                    writer.write(data)
                    await writer.drain()
            finally:
                target.close()
        except (OSError, ValueError, KeyError, asyncio.IncompleteReadError) as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            writer.write(FAILED)
        finally:
            writer.close()


async def main(prefill: str, decode: str, port: int) -> None:
    server = await asyncio.start_server(Proxy(prefill, decode).serve, "127.0.0.1", port)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prefill", required=True)
    parser.add_argument("--decode", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(main(options.prefill, options.decode, options.port))
