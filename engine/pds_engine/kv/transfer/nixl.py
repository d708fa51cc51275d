"""Pages by NIXL over UCX: one-sided writes, by RDMA, CUDA IPC or another way that both hosts have.

Nothing announces progress: both sides poll while writes are under way, which costs less than NIXL's
own progress thread (it halves the throughput on two cores); the sender says when (Posting). UCX
listens on every device it finds, so it is confined to the pod's own before it is loaded.
"""

import fcntl
import importlib
import logging
import os
import secrets
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
from msgspec import DecodeError, Struct, ValidationError
from msgspec.msgpack import Decoder, encode

from pds_engine.config import KvBackend
from pds_engine.errors import TransferFailed
from pds_engine.kv.layout import ByteRun
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer.base import (
    Backend,
    Described,
    Offer,
    Route,
    Way,
    WriteResult,
    same_domain,
)
from pds_engine.kv.transfer.channel import Channel
from pds_engine.kv.transfer.frames import Posting
from pds_engine.listening import some_free
from pds_engine.ports import UCX, KvAddress

_log = logging.getLogger(__name__)

_SIOCGIFADDR: Final = 0x8915
_RDMA: Final = Path("/sys/class/infiniband")


class _Pages(Struct, frozen=True, array_like=True):
    """Offer.detail: how to address a rank's pool."""

    metadata: bytes
    address: int
    bytes: int
    memory: str
    device: int


class _RemoteAgent(Struct, frozen=True, array_like=True):
    """A peer's agent, as NIXL calls it, and its pool."""

    agent: str
    pages: _Pages


_pages = Decoder(_Pages)


class NixlBackend(Backend):
    """One NIXL agent with the pool registered. Of the transfer thread alone."""

    name: ClassVar[KvBackend] = "nixl"
    one_sided = True

    def __init__(self, pool: KvPool, host: str, ports: range) -> None:
        self._address = pool.address
        self._bytes = pool.bytes
        self._memory = "VRAM" if pool.device.type == "cuda" else "DRAM"
        self._device = pool.device.index or 0
        self._fabric = _fabric(self._memory)
        _confine(host, ports)
        try:
            api = importlib.import_module("nixl._api")
            _quieten()
            config = api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
            self._agent: Any = api.nixl_agent(secrets.token_hex(8), config)
            region = [(self._address, self._bytes, self._device, "")]
            self._region: Any = self._agent.register_memory(region, self._memory)
        except Exception as error:  # NIXL's own classes derive from Exception alone
            raise TransferFailed(f"NIXL does not start: {error}") from error
        self._peers: dict[Channel, _RemoteAgent] = {}
        self._posted: dict[int, tuple[Channel, Any]] = {}
        self._ended: list[WriteResult] = []
        self._abandoned: list[Any] = []
        """Handles of lost peers that NIXL would not release yet."""

    @classmethod
    def start(cls, pool: KvPool, at: KvAddress) -> Self:
        return cls(pool, at.host, at.ucx)

    @staticmethod
    def way(ours: Offer, theirs: Offer) -> Way | None:
        """Not the host's TCP where there is a common fabric, or one address space."""
        direct = bool(set(ours.fabric) & set(theirs.fabric)) or same_domain(ours, theirs)
        return Way.DIRECT if direct else Way.EMULATED

    @property
    def polling(self) -> bool:
        return bool(self._posted)

    def register(self) -> Described:
        pages = _Pages(
            self._agent.get_agent_metadata(),
            self._address,
            self._bytes,
            self._memory,
            self._device,
        )
        return Described(domain=_domain(), fabric=self._fabric, offer=encode(pages))

    def connect(self, channel: Channel, offer: Offer) -> object:
        if channel not in self._peers:
            try:
                pages = _pages.decode(offer.detail)
                agent = self._agent.add_remote_agent(pages.metadata)
            except (DecodeError, ValidationError) as error:
                raise TransferFailed(f"an unreadable NIXL offer: {error}") from error
            except Exception as error:
                raise TransferFailed(f"NIXL cannot reach {channel.peer}: {error}") from error
            name = agent.decode() if isinstance(agent, bytes) else agent
            self._peers[channel] = _RemoteAgent(name, pages)
        return self._peers[channel]

    def write(self, route: Route, runs: Sequence[ByteRun], ticket: int) -> None:
        peer = route.remote
        if not isinstance(peer, _RemoteAgent):
            raise TransferFailed("a route of another backend")
        parts = np.asarray(runs, dtype=np.uint64)
        local = _descriptors(parts[:, 0], parts[:, 2], self._address, self._device)
        remote = _descriptors(parts[:, 1], parts[:, 2], peer.pages.address, peer.pages.device)
        if not self._under_way(route.channel):
            route.channel.send(Posting(active=True))
        try:
            handle = self._agent.initialize_xfer(
                "WRITE",
                self._agent.get_xfer_descs(local, self._memory),
                self._agent.get_xfer_descs(remote, peer.pages.memory),
                peer.agent,
            )
            self._posted[ticket] = (route.channel, handle)
            self._look(ticket, route.channel, handle, self._agent.transfer(handle))
        except Exception as error:
            self._posted.pop(ticket, None)
            self._rest(route.channel)
            message = f"NIXL cannot write to {route.channel.peer}: {error}"
            self._ended.append(WriteResult(ticket, message, stray=True))

    def poll(self) -> list[WriteResult]:
        for ticket, (channel, handle) in list(self._posted.items()):
            try:
                self._look(ticket, channel, handle, self._agent.check_xfer_state(handle))
            except Exception as error:
                self._end(ticket, channel, handle, f"NIXL lost {channel.peer}: {error}")
        self._agent.get_new_notifs()  # makes progress for those who write to us
        self._abandoned = [handle for handle in self._abandoned if not _release(handle)]
        ended, self._ended = self._ended, []
        return ended

    def cancel(self, transfer: str) -> None:
        """What is posted is awaited: UCX cannot take a write back."""

    def lost(self, channel: Channel) -> None:
        for ticket, (to, handle) in list(self._posted.items()):
            if to is channel:
                del self._posted[ticket]
                if not _release(handle):
                    self._abandoned.append(handle)
        peer = self._peers.pop(channel, None)
        if peer is not None:
            try:
                self._agent.remove_remote_agent(peer.agent)
            except Exception as error:
                _log.warning("NIXL does not forget %s: %s", channel.peer, error)

    def close(self) -> None:
        for channel in list(self._peers):
            self.lost(channel)
        try:
            self._agent.deregister_memory(self._region)
        except Exception as error:
            _log.warning("NIXL does not let go of the pool: %s", error)
        self._agent = None

    def _look(self, ticket: int, channel: Channel, handle: Any, state: str) -> None:
        if state == "DONE":
            self._end(ticket, channel, handle, None)
        elif state != "PROC":
            self._end(ticket, channel, handle, f"NIXL reports {state}")

    def _end(self, ticket: int, channel: Channel, handle: Any, error: str | None) -> None:
        self._posted.pop(ticket, None)
        if not _release(handle):
            self._abandoned.append(handle)
        self._ended.append(WriteResult(ticket, error, stray=error is not None))
        self._rest(channel)

    def _under_way(self, channel: Channel) -> bool:
        return any(to is channel for to, _ in self._posted.values())

    def _rest(self, channel: Channel) -> None:
        """The peer need not poll any more, if nothing is left under way to it."""
        if not self._under_way(channel):
            channel.send(Posting(active=False))


def _descriptors(
    offsets: "np.ndarray[Any, np.dtype[np.uint64]]",
    lengths: "np.ndarray[Any, np.dtype[np.uint64]]",
    base: int,
    device: int,
) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """[n, 3] of address, length, device."""
    rows = np.empty((len(offsets), 3), dtype=np.uint64)
    rows[:, 0], rows[:, 1], rows[:, 2] = offsets + np.uint64(base), lengths, device
    return rows


def _release(handle: Any) -> bool:
    try:
        handle.release()
    except Exception as error:
        _log.debug("NIXL keeps a transfer handle: %s", error)
        return False
    return True


def _quieten() -> None:
    """NIXL's logger prints to standard output; its warnings go where ours go."""
    logger = logging.getLogger("nixl")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)


def _fabric(memory: str) -> tuple[str, ...]:
    found = []
    if _RDMA.is_dir() and any(_RDMA.iterdir()):
        found.append("rdma")
    if memory == "VRAM":
        found.append("cuda")
    return tuple(found)


def _domain() -> str:
    """Equal where UCX may copy from process to process: one boot, one set of namespaces."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    spaces = [os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "ipc", "net", "user")]
    return ":".join([boot, *spaces])


def _confine(host: str, ports: range) -> None:
    """Make UCX, before it is loaded, use only the pod's own device (and its RDMA ones), and one of
    `ports`. If none of them were free it would look for one for ever.

    Nor may it rewrite libc's mmap, madvise and others to see what is unmapped: a thread that is
    within one returns into the middle of the new code (openucx/ucx #11795). What is registered
    here stays mapped, so it has nothing to see.
    """
    os.environ.setdefault("UCX_MEM_MMAP_HOOK_MODE", "none")
    devices = [name for _, name in socket.if_nameindex() if _address_of(name) == host]
    if devices and _RDMA.is_dir():
        devices += [f"{entry.name}:1" for entry in sorted(_RDMA.iterdir())]
    if devices:
        os.environ.setdefault("UCX_NET_DEVICES", ",".join(devices))
    if ports:
        some_free(host, ports, UCX)
        os.environ.setdefault("UCX_TCP_PORT_RANGE", f"{ports[0]}-{ports[-1]}")


def _address_of(device: str) -> str | None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", device.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
