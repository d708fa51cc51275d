"""A process of its own reads bodies: its answers, and what follows from its end."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import pytest
from pds_engine import reading
from pds_engine.errors import InvalidRequest, NotRead, Overloaded, TooLong, Unexpected
from pds_engine.reading import NICE, Reader, ReadQueue

BODY = b"x" * (8 << 20)


def answered(about: bytes, body: bytes) -> bytes:
    """What the tests ask of the process: this function runs in it."""
    if about == b"wait":
        time.sleep(60)
    if about == b"end":
        os._exit(3)
    if about == b"refuse":
        raise TooLong(f"{len(body)} bytes", param="prompt")
    if about == b"wrong":
        raise InvalidRequest("no object")
    if about == b"fail":
        raise ZeroDivisionError
    here = {"pid": os.getpid(), "nice": os.nice(0), "bytes": len(body)}
    return json.dumps(here).encode()


@pytest.fixture
async def reader(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    one = Reader("test_reading:answered")
    yield one
    await one.close()


async def test_another_process_that_yields_reads_all(reader):
    answers = [json.loads(await reader.read(b"", BODY)) for _ in range(3)]
    assert {a["bytes"] for a in answers} == {len(BODY)}
    assert {a["nice"] for a in answers} == {os.nice(0) + NICE}
    assert len({a["pid"] for a in answers} | {os.getpid()}) == 2


async def test_a_refusal_is_the_functions_and_the_process_goes_on(reader):
    before = json.loads(await reader.read(b"", b""))["pid"]
    with pytest.raises(TooLong, match=r"^8388608 bytes$") as caught:
        await reader.read(b"refuse", BODY)
    assert caught.value.param == "prompt"
    with pytest.raises(InvalidRequest) as wrong:
        await reader.read(b"wrong", b"")
    assert wrong.value.param is None
    with pytest.raises(Unexpected):
        await reader.read(b"fail", b"")
    assert json.loads(await reader.read(b"", b""))["pid"] == before


async def test_the_end_of_the_process_is_one_bodys_and_the_next_starts_another(reader):
    with pytest.raises(NotRead):
        await reader.read(b"end", BODY)
    assert json.loads(await reader.read(b"", b"ab"))["bytes"] == 2


async def test_a_body_has_its_time(reader, monkeypatch):
    monkeypatch.setattr(reading, "SECONDS", 0.3)
    with pytest.raises(NotRead, match=r"within 0.3 s"):
        await reader.read(b"wait", b"")
    monkeypatch.setattr(reading, "SECONDS", 30.0)
    assert json.loads(await reader.read(b"", b"ab"))["bytes"] == 2


async def test_nobody_gets_the_answer_to_a_question_that_was_given_up(reader):
    first = json.loads(await reader.read(b"", b""))["pid"]
    asked = asyncio.create_task(reader.read(b"wait", b""))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    answer = json.loads(await reader.read(b"", b"abc"))
    assert answer["bytes"] == 3 and answer["pid"] != first


async def test_the_process_ends_with_its_parent(tmp_path):
    """Even one that is killed: nobody is left to close it."""
    program = (
        "import asyncio, os, signal\n"
        "from pds_engine.reading import Reader\n"
        "async def main():\n"
        "    print((await Reader('test_reading:answered').read(b'', b'')).decode(), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    path = tmp_path / "parent.py"
    path.write_text(program)

    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, str(path)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    said, _ = await parent.communicate()
    child = json.loads(said)["pid"]
    async with asyncio.timeout(5):
        while os.path.exists(f"/proc/{child}"):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)


async def test_one_body_is_read_at_a_time_and_few_wait():
    turns, running = ReadQueue(most=100), []

    async def read(size: int, go: asyncio.Event) -> None:
        async with turns.turn(size):
            running.append(size)
            await go.wait()

    first, second = asyncio.Event(), asyncio.Event()
    tasks = [asyncio.create_task(read(60, first)), asyncio.create_task(read(40, second))]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await read(1, first)
    assert running == [60]
    first.set()
    second.set()
    await asyncio.gather(*tasks)
    await read(1000, first)  # alone, any size is read
    assert running == [60, 40, 1000]
