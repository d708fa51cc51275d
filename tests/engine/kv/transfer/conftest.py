"""Two ranks that hand pages over: in this process, or each in a process of its own."""

import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from pds_engine.config import KvBackend, KvConfig
from pds_engine.keys import Keys
from pds_engine.kv.layout import KvFormat, KvShard
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer import TransferLimits, TransferThread, shared_pool
from pds_engine.kv.transfer.registry import BACKENDS
from pds_engine.messages import KvEndpoint, Message
from pds_engine.ports import UCX_OFFSET, KvAddress

torch.set_num_threads(1)

PATIENCE = 20.0
"""Seconds until a test that waits for an event fails."""


class Side:
    """One rank: a pool and its transfer thread, with the events kept."""

    def __init__(
        self,
        kv: KvFormat,
        part: KvShard,
        pages: int,
        backends: Sequence[KvBackend],
        keys: Keys,
        rank: int = 0,
        limits: TransferLimits | None = None,
        port: int = 0,
    ) -> None:
        self.pool = KvPool(kv, part, pages, shared=shared_pool(backends))
        self.bytes = self.pool.data.view(torch.uint8).view(pages, -1)
        self.events: queue.Queue[Message] = queue.Queue()
        config = KvConfig.model_validate({"backends": tuple(backends)})
        ucx = range(port + UCX_OFFSET, port + UCX_OFFSET + 2) if port else range(0)
        at = KvAddress("127.0.0.1", port, ucx)
        self.thread = TransferThread(self.pool, config, rank, at, self.events.put, keys, limits)

    def endpoint(self) -> KvEndpoint:
        return self.thread.endpoint()

    def order(self, name: str, order: Message) -> None:
        getattr(self.thread, name)(order)

    def event(self, timeout: float = PATIENCE) -> Message | None:
        try:
            return self.events.get(timeout=timeout)
        except queue.Empty:
            return None

    def fill(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.bytes.random_(0, 256, generator=generator)

    def clear(self) -> None:
        self.bytes.zero_()

    def page(self, index: int) -> bytes:
        return self.bytes[index].numpy().tobytes()

    def written(self) -> list[int]:
        """The pages that hold anything but zeros."""
        return self.bytes.any(dim=1).nonzero().flatten().tolist()

    def stop(self) -> None:
        self.thread.stop()


class Group:
    """Several ranks of one process."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._sides: list[Side] = []

    def build(
        self, kv: KvFormat, parts: Sequence[KvShard], pages: int, backends: Sequence[str]
    ) -> tuple[KvEndpoint, ...]:
        """Fresh ranks in place of those that were; their pages cleared."""
        self.stop()
        self._sides = [
            Side(kv, part, pages, backends, self._keys, rank) for rank, part in enumerate(parts)
        ]
        return tuple(side.endpoint() for side in self._sides)

    def load(self, rank: int, content: bytes) -> None:
        memory = self._sides[rank].pool.memory
        assert memory is not None
        memory[:] = content

    def content(self, rank: int) -> bytes:
        return bytes(self._sides[rank].pool.memory or b"")

    def order(self, name: str, order: Message) -> None:
        for side in self._sides:
            side.order(name, order)

    def events(self) -> list[Message | None]:
        """One of every rank."""
        return [side.event() for side in self._sides]

    def stop(self) -> None:
        for side in self._sides:
            side.stop()
        self._sides = []


class Remote:
    """An object that lives in a process of its own, called through a pipe."""

    def __init__(self, kind: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(self._pipe, theirs, kind, args, kwargs), daemon=True
        )
        self._process.start()
        theirs.close()
        failure = self._pipe.recv()
        if failure is not None:
            raise failure

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self._pipe.send((name, args))
            return self._pipe.recv()

        return call

    def signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(
    parents: Connection,
    pipe: Connection,
    kind: Callable[..., Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
) -> None:
    parents.close()
    try:
        served = kind(*args, **kwargs)
    except Exception as error:
        pipe.send(error)
        return
    pipe.send(None)
    while True:
        try:
            name, arguments = pipe.recv()
        except EOFError:
            os._exit(0)
        pipe.send(getattr(served, name)(*arguments))


@pytest.fixture(scope="session")
def keys() -> Keys:
    return Keys.make()


@pytest.fixture(params=[name for name in BACKENDS if not BACKENDS[name].one_sided])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend whose writes the receiver checks."""
    return str(request.param)


@pytest.fixture
def side(keys: Keys) -> Iterator[Callable[..., Side]]:
    """Makes sides in this process: side(format, shard, pages, backends, **more)."""
    made: list[Side] = []

    def make(
        kv: KvFormat, part: KvShard, pages: int, backends: Sequence[KvBackend], **more: Any
    ) -> Side:
        made.append(Side(kv, part, pages, backends, **{"keys": keys, **more}))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def remote(keys: Keys) -> Iterator[Callable[..., Remote]]:
    """Makes sides in processes of their own."""
    made: list[Remote] = []

    def make(
        kv: KvFormat, part: KvShard, pages: int, backends: Sequence[KvBackend], **more: Any
    ) -> Remote:
        made.append(Remote(Side, kv, part, pages, backends, **{"keys": keys, **more}))
        return made[-1]

    yield make
    for one in made:
        one.end()


@pytest.fixture(scope="module")
def groups(keys: Keys) -> Iterator[tuple[Remote, Remote]]:
    """P's and D's ranks, each group in a process of its own."""
    both = (Remote(Group, keys), Remote(Group, keys))
    yield both
    for one in both:
        one.end()
