"""The tests' oracle: the receiver copies the pages itself, out of the sender's shared memory.

Same protocol as TCP, with the bytes by reference. So it is fenced as TCP is: the receiver checks
transfer, epoch and pages before it copies. Both processes run as one user on one host.
"""

import mmap
import os
from typing import ClassVar, NamedTuple

from msgspec import DecodeError, ValidationError
from msgspec.msgpack import Decoder, encode

from pds_engine.config import KvBackend
from pds_engine.errors import TransferFailed
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer.base import Described, Offer, Way, same_domain
from pds_engine.kv.transfer.channel import Channel
from pds_engine.kv.transfer.frames import Copy, pack_runs
from pds_engine.kv.transfer.tcp import RunBatch, TcpBackend


class _MemoryFile(NamedTuple):
    pid: int
    descriptor: int
    bytes: int


_memory_files = Decoder(_MemoryFile)


class ShmBackend(TcpBackend):
    """Asks the receiver to copy."""

    name: ClassVar[KvBackend] = "shm"
    shares_pool = True

    def __init__(self, pool: KvPool) -> None:
        super().__init__(pool)
        if pool.memory_file is None:
            raise TransferFailed("shm needs a pool in shared memory", hint="KvPool(shared=True)")
        self._file = _MemoryFile(os.getpid(), pool.memory_file, pool.bytes)

    @staticmethod
    def way(ours: Offer, theirs: Offer) -> Way | None:
        return Way.COPY if same_domain(ours, theirs) else None

    def register(self) -> Described:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return Described(domain=file.read().strip(), open=encode(self._file))

    def source(self, detail: bytes) -> memoryview | None:
        return attach(detail)

    def _post(self, channel: Channel, batch: RunBatch) -> None:
        channel.send(
            Copy(
                transfer=batch.transfer,
                epoch=batch.epoch,
                ticket=batch.ticket,
                runs=pack_runs(batch.runs),
            )
        )


def attach(detail: bytes) -> memoryview:
    """The sender's pages, read-only, from Open.detail.

    Raises:
        TransferFailed: it names no memory file of this host.
    """
    try:
        place = _memory_files.decode(detail)
        descriptor = os.open(f"/proc/{place.pid}/fd/{place.descriptor}", os.O_RDONLY)
    except (OSError, DecodeError, ValidationError) as error:
        raise TransferFailed(f"cannot map the sender's pages: {error}") from error
    try:
        return memoryview(mmap.mmap(descriptor, place.bytes, prot=mmap.PROT_READ))
    except (OSError, ValueError) as error:
        raise TransferFailed(f"cannot map the sender's pages: {error}") from error
    finally:
        os.close(descriptor)
