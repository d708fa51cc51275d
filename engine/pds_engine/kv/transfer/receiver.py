"""D's side: accepts peers, answers who may write, and places bytes into the pages held for them."""

import logging
import selectors
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pds_engine.config import KvBackend
from pds_engine.errors import ProtocolError, TransferFailed
from pds_engine.kv.layout import ByteRun
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer.base import Backend, TransferLimits
from pds_engine.kv.transfer.channel import Channel, Credentials
from pds_engine.kv.transfer.expectations import Expectations, OpenAnswer
from pds_engine.kv.transfer.frames import (
    Ack,
    AnyFrame,
    Close,
    Copy,
    Nack,
    Open,
    Opened,
    OpenRefused,
    Posting,
    Write,
    unpack_runs,
)
from pds_engine.listening import listener
from pds_engine.messages import Expect, Forget
from pds_engine.ports import KV

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Visitor:
    """What one connected peer has open here."""

    opened: dict[str, Open] = field(default_factory=dict)
    waiting: dict[str, tuple[Open, float]] = field(default_factory=dict)
    """Transfers that were asked for before their Expect, and until when they may wait."""
    placing: Write | None = None
    fault: str | None = None
    """Why the data being read is thrown away."""
    posting: bool = False
    """One-sided writes of it are under way."""
    mapped: dict[str, memoryview] = field(default_factory=dict)


class Receiver:
    """The listener of one rank and all that comes through it. Used by the transfer thread alone."""

    def __init__(
        self,
        pool: KvPool,
        backends: Mapping[KvBackend, Backend],
        address: tuple[str, int],
        *,
        credentials: Credentials,
        limits: TransferLimits,
        selector: selectors.BaseSelector,
    ) -> None:
        self._pool = pool
        self._backends = backends
        self._credentials = credentials
        self._limits = limits
        self._selector = selector
        self._expectations = Expectations(pool.pages, pool.bytes_per_page)
        self._visitors: dict[Channel, _Visitor] = {}
        self._loose: set[tuple[str, int]] = set()
        """Open to one-sided writes of a peer whose connection broke: it may yet be alive."""
        self._listener = listener(*address, KV)
        self._listener.setblocking(False)
        selector.register(self._listener, selectors.EVENT_READ, self)

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def polling(self) -> bool:
        """Whether a one-sided writer needs this side to make progress."""
        return any(visitor.posting for visitor in self._visitors.values())

    @property
    def timed(self) -> bool:
        """Whether `tick` has anything to watch."""
        return any(
            not channel.ready or channel.due or visitor.waiting
            for channel, visitor in self._visitors.items()
        )

    # ---- orders ----------------------------------------------------------------------------------

    def expect(self, order: Expect) -> None:
        self._expectations.expect(order.transfer, order.epoch, order.pages)
        for channel, visitor in list(self._visitors.items()):
            if order.transfer in visitor.waiting:
                self._answer(channel, visitor, visitor.waiting.pop(order.transfer)[0])

    def forget(self, order: Forget) -> bool:
        """Place nothing more of it. Returns whether nobody can write its pages unseen any more."""
        name = (order.transfer, order.epoch)
        self._expectations.forget(*name)
        fenced = name not in self._loose
        self._loose.discard(name)
        for channel, visitor in list(self._visitors.items()):
            placing = visitor.placing
            if placing is not None and (placing.transfer, placing.epoch) == name:
                visitor.fault = f"transfer {order.transfer} was forgotten"
                channel.discard()
            opened = visitor.opened.get(order.transfer)
            if opened is not None and opened.epoch == order.epoch and self._bypassed(opened):
                fenced = False
            waiting = visitor.waiting.get(order.transfer)
            if waiting is not None and waiting[0].epoch == order.epoch:
                del visitor.waiting[order.transfer]
                self._answer(channel, visitor, waiting[0])
        return fenced

    def tick(self, now: float) -> None:
        """Give up what is overdue."""
        for channel, visitor in list(self._visitors.items()):
            if not channel.ready and now > channel.opened + self._limits.handshake_seconds:
                channel.fail("no proof of the control key in time")
            elif channel.due and now > channel.progress + self._limits.stall_seconds:
                channel.fail(f"silent for {self._limits.stall_seconds:g} s")
            for transfer, (asked, until) in list(visitor.waiting.items()):
                if now > until:
                    del visitor.waiting[transfer]
                    _refuse(channel, asked, f"transfer {transfer} is not expected here")

    def accept(self, now: float) -> None:
        """Accept the next connection, up to the bound."""
        try:
            sock, address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            _log.warning("kv connection refused: %s", error)
            return
        peer = f"{address[0]}:{address[1]}"
        if len(self._visitors) >= self._limits.connections:
            _log.warning(
                "kv connection refused: %d are open", len(self._visitors), extra={"peer": peer}
            )
            sock.close()
            return
        channel = Channel.accept(
            sock, peer, self, self._selector, credentials=self._credentials, now=now
        )
        self._visitors[channel] = _Visitor()

    def close(self) -> None:
        self._selector.unregister(self._listener)
        self._listener.close()
        for channel in self._visitors:
            channel.close()
        self._visitors.clear()

    # ---- what a channel reports ------------------------------------------------------------------

    def on_ready(self, channel: Channel) -> None:
        _log.debug("kv peer connected", extra={"peer": channel.peer})

    def on_idle(self, channel: Channel) -> None:
        """Answers are queued as they arise."""

    def on_lost(self, channel: Channel, reason: str) -> None:
        visitor = self._visitors.pop(channel)
        for opened in visitor.opened.values():
            if self._bypassed(opened):
                self._loose.add((opened.transfer, opened.epoch))
        level = logging.INFO if channel.ready else logging.WARNING
        _log.log(
            level,
            "kv connection dropped: %s",
            reason,
            extra={"peer": channel.peer, "transfers": list(visitor.opened)},
        )

    def on_frame(
        self, channel: Channel, frame: AnyFrame, data_bytes: int
    ) -> Sequence[memoryview] | None:
        visitor = self._visitors[channel]
        if data_bytes and not isinstance(frame, Write):
            raise ProtocolError(f"{type(frame).__name__} carries {data_bytes} bytes of data")
        match frame:
            case Open():
                self._answer(channel, visitor, frame)
            case Write():
                return self._places(visitor, frame, data_bytes)
            case Copy():
                self._copy(channel, visitor, frame)
            case Posting(active=active):
                visitor.posting = active
            case Close():
                visitor.opened.pop(frame.transfer, None)
                visitor.waiting.pop(frame.transfer, None)
                visitor.mapped.pop(frame.transfer, None)
            case _:
                raise ProtocolError(f"{type(frame).__name__} is not for a receiver")
        return None

    def on_data(self, channel: Channel, frame: AnyFrame) -> None:
        if isinstance(frame, Write):
            visitor = self._visitors[channel]
            visitor.placing = None
            _acknowledge(channel, frame.ticket, visitor.fault)

    # ---- opening and placing ---------------------------------------------------------------------

    def _answer(self, channel: Channel, visitor: _Visitor, asked: Open) -> None:
        answer = self._expectations.answer(asked.transfer, asked.epoch)
        backend = self._backends.get(asked.backend)
        if backend is None:
            _refuse(channel, asked, f"{asked.backend} is not offered here")
        elif answer is OpenAnswer.OPEN:
            try:
                source = backend.source(asked.detail)
            except TransferFailed as error:
                _refuse(channel, asked, error.message)
                return
            if source is not None:
                visitor.mapped[asked.transfer] = source
            visitor.opened[asked.transfer] = asked
            channel.send(Opened(transfer=asked.transfer, epoch=asked.epoch))
        elif answer is OpenAnswer.WAIT and len(visitor.waiting) < self._limits.waiting:
            visitor.waiting[asked.transfer] = (
                asked,
                channel.progress + self._limits.expect_seconds,
            )
        else:
            _refuse(channel, asked, f"transfer {asked.transfer} is not expected here any more")

    def _bypassed(self, opened: Open) -> bool:
        """Whether its bytes land without passing here, so that nothing here can stop them."""
        return self._backends[opened.backend].one_sided

    def _fault(self, visitor: _Visitor, frame: Write | Copy, runs: list[ByteRun]) -> str | None:
        opened = visitor.opened.get(frame.transfer)
        if opened is None or opened.epoch != frame.epoch:
            return f"transfer {frame.transfer} is not open at epoch {frame.epoch}"
        return self._expectations.fault(frame.transfer, frame.epoch, runs)

    def _places(
        self, visitor: _Visitor, frame: Write, data_bytes: int
    ) -> Sequence[memoryview] | None:
        runs = unpack_runs(frame.runs)
        visitor.placing = frame
        visitor.fault = self._fault(visitor, frame, runs)
        if visitor.fault is not None or self._pool.memory is None:
            return None
        if sum(run.length for run in runs) != data_bytes:
            raise ProtocolError(f"{data_bytes} bytes of data are not what the runs name")
        memory = self._pool.memory
        return [memory[run.dst : run.dst + run.length] for run in runs]

    def _copy(self, channel: Channel, visitor: _Visitor, frame: Copy) -> None:
        runs = unpack_runs(frame.runs)
        fault = self._fault(visitor, frame, runs)
        source, memory = visitor.mapped.get(frame.transfer), self._pool.memory
        if fault is None and source is not None and memory is not None:
            for run in runs:
                if not 0 <= run.src <= len(source) - run.length:
                    raise ProtocolError(f"{run.length} bytes at {run.src} are outside the pages")
                memory[run.dst : run.dst + run.length] = source[run.src : run.src + run.length]
        _acknowledge(channel, frame.ticket, fault)


def _refuse(channel: Channel, asked: Open, message: str) -> None:
    channel.send(OpenRefused(transfer=asked.transfer, epoch=asked.epoch, message=message))


def _acknowledge(channel: Channel, ticket: int, fault: str | None) -> None:
    channel.send(Ack(ticket=ticket) if fault is None else Nack(ticket=ticket, message=fault))
