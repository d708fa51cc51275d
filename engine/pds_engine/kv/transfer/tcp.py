"""Pages over the channel itself: gathered from the pool by sendmsg, scattered into it by recvmsg.

No copy is made in this process on either side. A push goes in batches, each acknowledged by the
receiver once its bytes are in place; what a cancelled transfer has not begun to send is not sent.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Final, NamedTuple, Self

from pds_engine.config import KvBackend
from pds_engine.errors import TransferFailed
from pds_engine.kv.layout import ByteRun
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer.base import Backend, Described, Offer, Route, Way, WriteResult
from pds_engine.kv.transfer.channel import Channel
from pds_engine.kv.transfer.frames import Write, pack_runs
from pds_engine.ports import KvAddress

BATCH_BYTES: Final = 4 << 20
BATCH_RUNS: Final = 2048


class RunBatch(NamedTuple):
    """One frame's worth of a push."""

    transfer: str
    epoch: int
    ticket: int
    runs: list[ByteRun]


class TcpBackend(Backend):
    """Writes through a channel, whose receiver checks transfer, epoch and pages."""

    name: ClassVar[KvBackend] = "tcp"
    one_sided = False

    def __init__(self, pool: KvPool) -> None:
        if pool.memory is None:
            raise TransferFailed(f"tcp needs pages in host memory, they are on {pool.device}")
        self._memory = pool.memory
        self._queues: defaultdict[Channel, deque[RunBatch]] = defaultdict(deque)
        self._left: dict[int, int] = {}
        """Batches of a ticket that were not answered."""
        self._errors: dict[int, str] = {}
        """Why a batch of a ticket was refused."""
        self._ended: list[WriteResult] = []

    @classmethod
    def start(cls, pool: KvPool, at: KvAddress) -> Self:
        return cls(pool)

    @staticmethod
    def way(ours: Offer, theirs: Offer) -> Way | None:
        return Way.STREAM

    def register(self) -> Described:
        return Described()

    def connect(self, channel: Channel, offer: Offer) -> object:
        return None

    def write(self, route: Route, runs: Sequence[ByteRun], ticket: int) -> None:
        batches = [
            RunBatch(route.transfer, route.epoch, ticket, part) for part in split(runs, BATCH_BYTES)
        ]
        self._left[ticket] = len(batches)
        self._queues[route.channel].extend(batches)
        if route.channel.idle:
            self.refill(route.channel)

    def poll(self) -> list[WriteResult]:
        ended, self._ended = self._ended, []
        return ended

    def refill(self, channel: Channel) -> None:
        queue = self._queues.get(channel)
        if queue:
            channel.unanswered += 1
            self._post(channel, queue.popleft())

    def answered(self, ticket: int, error: str | None) -> None:
        """Of a ticket that was refused, the rest is not sent."""
        if ticket not in self._left:
            return
        if error is not None:
            self._errors.setdefault(ticket, error)
            self._drop(lambda batch: batch.ticket == ticket)
        self._count(ticket)

    def cancel(self, transfer: str) -> None:
        self._drop(lambda batch: batch.transfer == transfer)

    def lost(self, channel: Channel) -> None:
        for batch in self._queues.pop(channel, ()):
            self._left.pop(batch.ticket, None)

    def close(self) -> None:
        self._queues.clear()

    def _post(self, channel: Channel, batch: RunBatch) -> None:
        frame = Write(
            transfer=batch.transfer,
            epoch=batch.epoch,
            ticket=batch.ticket,
            runs=pack_runs(batch.runs),
        )
        views = [self._memory[run.src : run.src + run.length] for run in batch.runs]
        channel.send(frame, views)

    def _drop(self, which: Callable[[RunBatch], bool]) -> None:
        for channel, queue in self._queues.items():
            self._queues[channel] = deque(batch for batch in queue if not which(batch))
            for batch in filter(which, queue):
                self._count(batch.ticket)

    def _count(self, ticket: int) -> None:
        self._left[ticket] -= 1
        if not self._left[ticket]:
            del self._left[ticket]
            self._ended.append(WriteResult(ticket, self._errors.pop(ticket, None)))


def split(runs: Sequence[ByteRun], limit: int) -> Iterator[list[ByteRun]]:
    """Batches of at most `limit` bytes and BATCH_RUNS runs; a longer run is cut."""
    batch: list[ByteRun] = []
    room = limit
    for src, dst, length in runs:
        while length:
            part = min(length, room)
            batch.append(ByteRun(src, dst, part))
            src, dst, length, room = src + part, dst + part, length - part, room - part
            if not room or len(batch) == BATCH_RUNS:
                yield batch
                batch, room = [], limit
    if batch:
        yield batch
