"""The router's control keys: read as they change, kept while groups have them, each to its own."""

import asyncio
import json
import sys
import time

import aiohttp
import pytest
from free import free_port
from pds_engine import signing
from pds_engine.errors import ConfigError, Forbidden
from pds_engine.router.keyring import Keyring, Ring, opened, read
from pds_engine.signing import key_id

CHAT = "/v1/chat/completions"
OLD, NEW, THIRD = b"o" * 32, b"n" * 32, b"t" * 32


def lay_out(folder, default, *others):
    """A Secret's files as the kubelet has them: it swaps one link."""
    version = folder / f"..{time.monotonic_ns()}"
    version.mkdir(parents=True)
    (version / "hmac.key").write_text(default.hex())
    for key in others:
        (version / f"{key_id(key)}.key").write_text(key.hex() + "\n")
    link = folder / "..data_tmp"
    link.symlink_to(version.name)
    link.rename(folder / "..data")
    for name in {path.name for path in version.iterdir()} - {
        path.name for path in folder.iterdir()
    }:
        (folder / name).symlink_to(f"..data/{name}")


def test_a_control_secret_and_a_ring_are_read_in_the_same_way(tmp_path):
    (tmp_path / "hmac.key").write_text(OLD.hex())
    for name in ("server.key", "client.key", "client.pub"):  # of the control Secret itself
        (tmp_path / name).write_text("z" * 40)
    assert read(tmp_path) == Ring({key_id(OLD): OLD}, key_id(OLD))
    ring = tmp_path / "ring"
    lay_out(ring, OLD, OLD, NEW)
    assert read(ring) == Ring({key_id(OLD): OLD, key_id(NEW): NEW}, key_id(OLD))


@pytest.mark.parametrize(("text", "says"), [("zz", "not hexadecimal"), (None, "no control key")])
def test_a_folder_without_a_key_is_refused_at_the_start(tmp_path, text, says):
    if text is not None:
        (tmp_path / "hmac.key").write_text(text)
    with pytest.raises(ConfigError, match=says):
        opened(tmp_path)
    with pytest.raises(ConfigError, match="cannot read the control keys"):
        opened(tmp_path / "nowhere")


def test_a_key_stays_as_long_as_a_group_has_it():
    old, new = key_id(OLD), key_id(NEW)
    keys = Keyring(OLD)
    assert keys.take(Ring({old: OLD, new: NEW}, old), used={old})
    assert not keys.take(Ring({old: OLD, new: NEW}, old), used={old})
    assert (keys.name(""), keys.name(new)) == (old, new)
    assert keys.take(Ring({new: NEW}, new), used={old, new})
    assert sorted(keys) == sorted([old, new])  # somebody took it from the Secret too early
    assert not keys.take(Ring({}), used=())
    assert keys.take(Ring({new: NEW}, new), used={new})
    assert (list(keys), keys.of(old), keys.of(new)) == ([new], None, NEW)


async def test_each_group_is_asked_by_its_own_key_as_keys_change(engine, tmp_path):
    """Old groups do not report their key; new ones do, and are not asked before theirs is here."""
    folder = tmp_path / "keys"
    lay_out(folder, OLD)
    old = [await engine(role) for role in ("prefill", "decode")]
    new = [await engine(role, state={"key_id": key_id(NEW)}) for role in ("prefill", "decode")]
    config, port = tmp_path / "router.json", free_port()
    given = {"port": port, "metrics_port": None, "keys_dir": str(folder), "policy": "roundRobin"}
    config.write_text(json.dumps({**given, "backends": [e.url for e in [*old, *new]]}))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pds_engine.router", "serve", "--config", str(config)
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
            reasons = await routable(http, 2)
            assert sum("has not come to this router yet" in each for each in reasons) == 2
            await ask(http, 4)
            assert not any(e.calls for e in new)
            lay_out(folder, OLD, OLD, NEW)
            await routable(http, 4)
            await ask(http, 8)
            lay_out(folder, NEW, NEW)
            for each in old:
                await each.stop()
            await routable(http, 2)
            await ask(http, 4)
    finally:
        process.terminate()
        await process.wait()
    for engines, right, wrong in ((old, OLD, NEW), (new, NEW, OLD)):
        for seen in [seen for each in engines for seen in each.calls if seen.path == CHAT]:
            signing.verify(right, "POST", CHAT, seen.headers, time.time())
            with pytest.raises(Forbidden):
                signing.verify(wrong, "POST", CHAT, seen.headers, time.time())
        pairs = [{seen.headers["x-pds-request-id"] for seen in e.calls} for e in engines]
        assert pairs[0] == pairs[1]  # nothing was paired across keys
        assert pairs[0]


async def ask(http, times):
    for _ in range(times):
        async with http.post(CHAT, json={"messages": []}) as answer:
            assert answer.status == 200


async def routable(http, count):
    """Wait for so many, and for news of the keys; why the others are not."""
    async with asyncio.timeout(20):
        while True:
            try:
                async with http.get("/pds/backends") as answer:
                    entries = (await answer.json())["backends"]
                if sum(each["routable"] for each in entries) == count and len(entries) == 4:
                    return [each["reason"] for each in entries]
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
