"""A process of its own reads large bodies, and lets all others go first.

A parser holds the interpreter's lock from a body's first byte to its last: tens of milliseconds for
8 MB, in which nobody's tokens go out. So router and engine give such bodies to a child, which
answers with what they need of the body, or with the error that refuses it.

The child is `python -m pds_engine.reading MODULE:FUNCTION`. It is started for the first large body,
ends with its parent (its input ends), and speaks in frames: a status byte and the lengths of two
parts (u32, big endian), then the parts. The function gets the two parts of a question, what to
look for and the body, and returns bytes or raises a RequestError.
"""

import asyncio
import contextlib
import os
import pkgutil
import struct
import sys
import traceback
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

import msgspec

from pds_engine.errors import InvalidRequest, NotRead, Overloaded, TooLong, Unexpected

LARGE = 256 * 1024
"""Bytes from which a body is given to the child: handing it over costs less than reading it."""
MAX_WAITING = 32 << 20
"""Bytes that may be read or wait for their turn."""
SECONDS = 30.0
"""For one body, from the start of its turn."""
NICE = 10
"""The child's niceness: everybody's tokens go first."""
_REFUSALS = {kind.__name__: kind for kind in (InvalidRequest, TooLong)}
_HEAD = struct.Struct(">BII")
_DONE, _REFUSED, _FAILED = range(3)


class ReadQueue:
    """One body at a time; how many bytes wait is bounded."""

    def __init__(self, most: int = MAX_WAITING) -> None:
        self._most = most
        self._bytes = 0
        self._turn = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """Raises Overloaded when too much is waiting already."""
        if self._bytes and self._bytes + size > self._most:
            raise Overloaded("too many large requests are being read", retry_after=1)
        self._bytes += size
        try:
            async with self._turn:
                yield
        finally:
            self._bytes -= size


class Reader:
    """The parent's side of one such process. `function` is its MODULE:FUNCTION."""

    def __init__(self, function: str) -> None:
        self._function = function
        self._queue = ReadQueue()
        self._child: asyncio.subprocess.Process | None = None

    async def read(self, about: bytes, body: bytes) -> bytes:
        """What the function returns for the two.

        Raises:
            InvalidRequest, TooLong: the function refuses the body.
            Overloaded: too many bodies are waiting.
            NotRead: not within SECONDS, or the process ended meanwhile.
            Unexpected: the function failed.
        """
        async with self._queue.turn(len(body)):
            try:
                async with asyncio.timeout(SECONDS):
                    status, content = await self._exchange(about, body)
            except TimeoutError as error:
                await self.close()
                raise NotRead(
                    f"the body was not read within {SECONDS:g} s", retry_after=1
                ) from error
            except (OSError, asyncio.IncompleteReadError) as error:
                await self.close()
                raise NotRead("the process that reads large bodies ended", retry_after=1) from error
            except asyncio.CancelledError:
                await self.close()  # its answer would look like the next body's
                raise
        if status == _REFUSED:
            name, message, param = msgspec.msgpack.decode(content, type=tuple[str, str, str | None])
            raise _REFUSALS[name](message, param=param)
        if status == _FAILED:
            raise Unexpected("the body could not be read")
        return content

    async def close(self) -> None:
        """End the process; the next body starts another."""
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def _exchange(self, about: bytes, body: bytes) -> tuple[int, bytes]:
        child = self._child
        if child is None or child.returncode is not None:
            child = self._child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "pds_engine.reading", self._function),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        to, back = child.stdin, child.stdout
        if to is None or back is None:
            raise BrokenPipeError("the process that reads large bodies has no pipes")
        to.writelines((_HEAD.pack(_DONE, len(about), len(body)), about, body))
        await to.drain()
        status, length, _ = _HEAD.unpack(await back.readexactly(_HEAD.size))
        return status, await back.readexactly(length)


def main() -> None:
    """Answer questions until the input ends."""
    os.nice(NICE)
    function = pkgutil.resolve_name(sys.argv[1])
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := questions.read(_HEAD.size):
        _, *lengths = _HEAD.unpack(head)
        status, content = _answer(function, *(_exactly(questions, size) for size in lengths))
        answers.write(_HEAD.pack(status, len(content), 0) + content)
        answers.flush()


def _answer(function: Any, about: bytes, body: bytes) -> tuple[int, bytes]:
    try:
        return _DONE, function(about, body)
    except tuple(_REFUSALS.values()) as error:
        refusal = (type(error).__name__, error.message, error.param)
        return _REFUSED, msgspec.msgpack.encode(refusal)
    except Exception:  # it ends this body's reading, not the process
        traceback.print_exc()
        return _FAILED, b""


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) < size:
        sys.exit(0)  # the parent has gone
    return data


if __name__ == "__main__":
    main()
