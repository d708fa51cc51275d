"""The router as a process: what it loads, and how it leaves."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from free import free_port

CHAT = "/v1/chat/completions"


async def spawned(tmp_path, *engines, **options):
    port = free_port()
    (tmp_path / "hmac.key").write_text("00" * 32)
    config = tmp_path / "router.json"
    given = {"port": port, "metrics_port": free_port(), "keys_dir": str(tmp_path), **options}
    config.write_text(json.dumps({**given, "backends": [e.url for e in engines]}))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pds_engine.router", "serve", "--config", str(config),
        stderr=subprocess.PIPE,
    )  # fmt: skip
    return process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{given['metrics_port']}"


async def ready(http, url, backends):
    async with asyncio.timeout(20):
        while True:
            try:
                async with http.get(f"{url}/pds/backends") as response:
                    if sum(b["routable"] for b in (await response.json())["backends"]) == backends:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)


async def test_the_process_is_small_and_leaves_in_good_order(engine, tmp_path):
    release = asyncio.Event()
    unified = await engine("unified", script=waits(release))
    process, url, observed = await spawned(tmp_path, unified, linger_seconds=0.5)
    async with aiohttp.ClientSession() as http:
        await ready(http, url, 1)
        async with http.get(f"{observed}/metrics") as response:
            assert "pds_router_backend_routable" in await response.text()
        async with http.post(f"{observed}{CHAT}", json={}) as response:
            assert response.status == 404
        folder = Path(f"/proc/{process.pid}")
        status, loaded = (folder / "status").read_text(), (folder / "maps").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
        print(f"router: {resident:.0f} MB resident")
        assert resident <= 150
        assert "libtorch" not in loaded
        async with http.post(url + CHAT, json={"stream": True}) as one:
            await one.content.readuntil(b"\n\n")
            os.kill(process.pid, signal.SIGTERM)
            await until_status(http, f"{url}/readyz", 503)
            async with http.post(url + CHAT, json={"stream": True}) as late:  # still taken
                assert late.headers["connection"] == "close"
                await late.content.readuntil(b"\n\n")
                await refused(url)
                release.set()
                assert await late.read() == b"data: 2\n\n"
            assert await one.read() == b"data: 2\n\n"
    async with asyncio.timeout(5):
        assert await process.wait() == 0


async def test_the_next_request_behind_an_old_stream_is_answered_too(engine, tmp_path):
    """Its client never heard that the connection closes."""
    release = asyncio.Event()
    unified = await engine("unified", script=waits(release))
    process, url, _ = await spawned(tmp_path, unified, linger_seconds=2)
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(connector=connector) as http, aiohttp.ClientSession() as other:
        await ready(other, url, 1)
        async with http.post(url + CHAT, json={"stream": True}) as old:
            await old.content.readuntil(b"\n\n")
            os.kill(process.pid, signal.SIGTERM)
            await refused(url)
            release.set()
            assert await old.read() == b"data: 2\n\n"
        async with http.post(url + CHAT, json={"stream": True}) as late:  # on the same connection
            assert late.headers["connection"] == "close"
            assert await late.read() == b"data: 1\n\ndata: 2\n\n"
    async with asyncio.timeout(5):
        assert await process.wait() == 0


def waits(release):
    async def script(seen, stream):
        await stream.head()
        await stream.put(b"data: 1\n\n")
        await release.wait()
        await stream.put(b"data: 2\n\n")
        stream.end()

    return script


async def until_status(http, url, status):
    async with asyncio.timeout(5):
        while True:
            async with http.get(url) as response:
                if response.status == status:
                    return
            await asyncio.sleep(0.02)


async def refused(url):
    """New connections are not taken any more."""
    async with asyncio.timeout(5):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.05)


def test_it_imports_neither_torch_nor_the_engine():
    program = (
        "import sys, pds_engine.router.serve, pds_engine.router.cli\n"
        "bad = {'torch', 'transformers', 'zmq', 'tokenizers'} & set(sys.modules)\n"
        "apart = [f'pds_engine.{m}' for m in ('server', 'scheduler', 'worker')] + ['pds_kernels']\n"
        "apart += ['kubernetes.aio.client.models.', 'kubernetes.aio.client.api.']\n"
        "bad |= {m for m in sys.modules if m.startswith(tuple(apart))}\n"
        "print(sorted(bad))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("key", ["port", "metrics_port"])
async def test_a_port_in_use_is_named_and_is_no_configuration_error(tmp_path, key):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        process, *_ = await spawned(tmp_path, **{key: taken})
        async with asyncio.timeout(20):
            _, said = await process.communicate()
    assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{taken}" in said.decode()
    assert f"give {key} another one" in said.decode()
