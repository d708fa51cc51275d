"""P's side: dials the peers of a transfer, and writes what the steps have completed."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from msgspec import DecodeError, ValidationError
from msgspec.msgpack import Decoder

from pds_engine.config import KvBackend
from pds_engine.errors import ProtocolError, TransferFailed
from pds_engine.kv.layout import KvShard, plan_runs, plan_segments
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer.base import (
    Offer,
    Registered,
    Route,
    TransferLimits,
    WriteResult,
    decode_offer,
)
from pds_engine.kv.transfer.channel import Channel
from pds_engine.kv.transfer.choose import choose
from pds_engine.kv.transfer.frames import Ack, AnyFrame, Close, Nack, Open, Opened, OpenRefused
from pds_engine.kv.transfer.outgoing import Leg, Outgoing
from pds_engine.messages import (
    CloseTransfer,
    KvEndpoint,
    Message,
    OpenTransfer,
    Push,
    PushDone,
    PushFailed,
    TransferClosed,
)

_log = logging.getLogger(__name__)
_shards = Decoder(KvShard)

Dial = Callable[[Offer, "Sender"], Channel]


class Sender:
    """All outgoing transfers of one rank. Used by the transfer thread alone."""

    def __init__(
        self,
        pool: KvPool,
        rank: int,
        registered: Mapping[KvBackend, Registered],
        *,
        dial: Dial,
        limits: TransferLimits,
        report: Callable[[Message], None],
    ) -> None:
        self._pool = pool
        self._rank = rank
        self._backends = {name: each.backend for name, each in registered.items()}
        self._offers: dict[str, Offer] = {name: each.offer for name, each in registered.items()}
        self._details = {name: each.detail for name, each in registered.items()}
        self._dial = dial
        self._limits = limits
        self._report = report
        self._transfers: dict[str, Outgoing] = {}
        self._channels: dict[tuple[str, int, bytes], Channel] = {}
        self._named: set[Channel] = set()
        """Channels whose backend the log has named."""
        self._tickets: dict[int, Outgoing] = {}
        self._numbers = count(1)

    @property
    def timed(self) -> bool:
        """Whether `tick` has anything to watch."""
        return any(
            transfer.close_by is not None or any(leg.route is None for leg in transfer.legs)
            for transfer in self._transfers.values()
        ) or any(not channel.ready or channel.due for channel in self._channels.values())

    # ---- orders ----------------------------------------------------------------------------------

    def open(self, order: OpenTransfer) -> None:
        """Find the peers that take bytes from this rank, and ask them to open the transfer."""
        if order.transfer in self._transfers:
            raise ProtocolError(f"transfer {order.transfer} is open already")
        transfer = Outgoing(order, [], time.monotonic())
        self._transfers[order.transfer] = transfer
        try:
            transfer.legs.extend(leg for peer in order.peers if (leg := self._leg(peer)))
        except TransferFailed as error:
            self._fail(transfer, error.message)
            return
        for leg in transfer.legs:
            if leg.channel.ready:
                self._ask_to_open(transfer, leg)

    def push(self, order: Push) -> None:
        """Write these pages, now or once the peer has opened the transfer."""
        transfer = self._transfers.get(order.transfer)
        if transfer is None or transfer.ended or transfer.close_by is not None:
            return
        if len(order.src_pages) != len(order.dst_pages) or not self._holds(order.src_pages):
            self._fail(transfer, f"not pages of this rank: {order.src_pages}")
            return
        transfer.last = order.last
        for leg in transfer.legs:
            leg.waiting.append(order)
            self._pump(transfer, leg)
        self._settle(transfer)

    def close(self, order: CloseTransfer) -> None:
        """Post nothing more; `TransferClosed` follows within the bound."""
        transfer = self._transfers.get(order.transfer)
        if transfer is None:
            self._report(TransferClosed(transfer=order.transfer, rank=self._rank))
            return
        transfer.close_by = time.monotonic() + self._limits.drain_seconds
        self._stop(transfer)
        self._settle(transfer)

    def tick(self, now: float) -> None:
        """Give up what is overdue."""
        for channel in list(self._channels.values()):
            if not channel.ready and now > channel.opened + self._limits.handshake_seconds:
                channel.fail("no answer to the handshake in time")
            elif channel.due and now > channel.progress + self._limits.stall_seconds:
                channel.fail(f"silent for {self._limits.stall_seconds:g} s")
        patience = self._limits.expect_seconds + self._limits.stall_seconds
        for transfer in list(self._transfers.values()):
            if transfer.close_by is not None and now > transfer.close_by:
                self._closed(transfer, drained=False)
            elif now > transfer.opened + patience and any(not x.route for x in transfer.legs):
                self._fail(transfer, "the peer has not opened the transfer")

    def shut(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    # ---- what backends and channels report -------------------------------------------------------

    def ended(self, done: WriteResult) -> None:
        """A write has completed, or failed."""
        transfer = self._tickets.pop(done.ticket, None)
        if transfer is None:
            return
        transfer.under_way.discard(done.ticket)
        if not transfer.under_way:
            transfer.busy += time.monotonic() - transfer.busy_since
        if done.error is not None:
            transfer.stray |= done.stray
            self._fail(transfer, done.error)
        self._settle(transfer)

    def on_ready(self, channel: Channel) -> None:
        for transfer in list(self._transfers.values()):
            for leg in transfer.legs:
                if leg.channel is channel:
                    self._ask_to_open(transfer, leg)

    def on_frame(
        self, channel: Channel, frame: AnyFrame, data_bytes: int
    ) -> Sequence[memoryview] | None:
        if data_bytes:
            raise ProtocolError(f"{type(frame).__name__} carries {data_bytes} bytes of data")
        match frame:
            case Opened():
                self._opened(channel, frame)
            case OpenRefused():
                for transfer, _ in self._on(channel, frame.transfer, frame.epoch):
                    self._fail(transfer, frame.message)
            case Ack():
                self._answered(channel, frame.ticket, None)
            case Nack():
                self._answered(channel, frame.ticket, frame.message)
            case _:
                raise ProtocolError(f"{type(frame).__name__} is not for a sender")
        return None

    def on_data(self, channel: Channel, frame: AnyFrame) -> None:
        """No frame for a sender has any."""

    def on_idle(self, channel: Channel) -> None:
        for backend in self._backends.values():
            if channel.idle:
                backend.refill(channel)

    def on_lost(self, channel: Channel, reason: str) -> None:
        self._channels = {k: c for k, c in self._channels.items() if c is not channel}
        self._named.discard(channel)
        for backend in self._backends.values():
            backend.lost(channel)
        late = [transfer for transfer in self._tickets.values() if transfer.closed]
        for transfer in [*self._transfers.values(), *dict.fromkeys(late)]:
            if any(leg.channel is channel for leg in transfer.legs):
                self._fail(transfer, f"kv peer {channel.peer}: {reason}")
                if transfer.under_way:
                    transfer.stray = True
                    for ticket in transfer.under_way:
                        self._tickets.pop(ticket, None)
                    transfer.under_way.clear()
                self._settle(transfer)

    # ---- one transfer ----------------------------------------------------------------------------

    def _leg(self, peer: KvEndpoint) -> Leg | None:
        try:
            shard = _shards.decode(peer.shard)
            offers = {name: decode_offer(data) for name, data in peer.backends.items()}
        except (DecodeError, ValidationError) as error:
            raise TransferFailed(f"an unreadable endpoint of rank {peer.rank}: {error}") from error
        segments = plan_segments(self._pool.format, self._pool.shard, shard)
        if not segments:
            return None
        name = choose(self._offers, offers)
        if name is None:
            raise TransferFailed(
                f"no KV backend in common: {', '.join(self._offers)} here, "
                f"{', '.join(offers) or 'none'} at rank {peer.rank} of the peer",
                hint="give both roles one of kv.backends",
            )
        page_bytes = shard.page_bytes(self._pool.format)
        channel = self._channel(offers[name])
        return Leg(peer, self._backends[name], offers[name], channel, segments, page_bytes)

    def _channel(self, offer: Offer) -> Channel:
        key = (offer.host, offer.port, offer.instance)
        if key not in self._channels:
            try:
                self._channels[key] = self._dial(offer, self)
            except OSError as error:
                raise TransferFailed(f"cannot dial {offer.host}:{offer.port}: {error}") from error
        return self._channels[key]

    def _ask_to_open(self, transfer: Outgoing, leg: Leg) -> None:
        name = leg.backend.name
        order = transfer.order
        leg.channel.send(
            Open(
                transfer=order.transfer,
                epoch=order.epoch,
                backend=name,
                detail=self._details[name],
            )
        )

    def _opened(self, channel: Channel, frame: Opened) -> None:
        for transfer, leg in self._on(channel, frame.transfer, frame.epoch):
            if transfer.ended or transfer.close_by is not None or leg.route is not None:
                continue
            try:
                remote = leg.backend.connect(channel, leg.offer)
            except TransferFailed as error:
                self._fail(transfer, error.message)
                continue
            leg.route = Route(frame.transfer, frame.epoch, channel, remote)
            self._name(channel, leg.backend.name)
            self._pump(transfer, leg)
            self._settle(transfer)

    def _pump(self, transfer: Outgoing, leg: Leg) -> None:
        """Begin the writes that wait for this leg, if it is open."""
        if leg.route is None:
            return
        waiting, leg.waiting = leg.waiting, []
        for order in waiting:
            if any(not 0 <= page < leg.peer.pages for page in order.dst_pages):
                self._fail(transfer, f"not pages of the peer: {order.dst_pages}")
                return
            runs = plan_runs(
                leg.segments,
                order.src_pages,
                order.dst_pages,
                self._pool.bytes_per_page,
                leg.page_bytes,
            )
            if not runs:
                continue
            if not transfer.under_way:
                transfer.busy_since = time.monotonic()
            ticket = next(self._numbers)
            transfer.under_way.add(ticket)
            self._tickets[ticket] = transfer
            transfer.bytes += sum(run.length for run in runs)
            leg.backend.write(leg.route, runs, ticket)

    def _settle(self, transfer: Outgoing) -> None:
        """Report what has come to an end."""
        if transfer.under_way or any(leg.waiting for leg in transfer.legs):
            return
        if transfer.closed:
            self._send_close(transfer)
            return
        if transfer.last and not transfer.ended and transfer.close_by is None:
            transfer.ended = True
            self._report(
                PushDone(
                    transfer=transfer.order.transfer,
                    rank=self._rank,
                    bytes=transfer.bytes,
                    seconds=transfer.busy,
                )
            )
        if transfer.close_by is not None:
            self._closed(transfer, drained=not transfer.stray)

    def _fail(self, transfer: Outgoing, message: str) -> None:
        self._stop(transfer)
        if not transfer.ended:
            transfer.ended = True
            name = transfer.order.transfer
            _log.warning("kv push failed: %s", message, extra={"transfer": name})
            self._report(PushFailed(transfer=name, rank=self._rank, message=message))

    def _stop(self, transfer: Outgoing) -> None:
        for leg in transfer.legs:
            leg.waiting.clear()
            leg.backend.cancel(transfer.order.transfer)

    def _closed(self, transfer: Outgoing, *, drained: bool) -> None:
        name = transfer.order.transfer
        del self._transfers[name]
        transfer.closed = transfer.ended = True
        if not transfer.under_way:
            self._send_close(transfer)
        self._report(TransferClosed(transfer=name, rank=self._rank, drained=drained))

    def _send_close(self, transfer: Outgoing) -> None:
        """Send the peer a Close, if nothing of the transfer can come any more."""
        if transfer.stray:
            return
        order = transfer.order
        for channel in {leg.channel for leg in transfer.legs}:
            if channel.ready:
                channel.send(Close(transfer=order.transfer, epoch=order.epoch))

    # ---- helpers ---------------------------------------------------------------------------------

    def _on(self, channel: Channel, name: str, epoch: int) -> list[tuple[Outgoing, Leg]]:
        transfer = self._transfers.get(name)
        if transfer is None or transfer.order.epoch != epoch:
            return []
        return [(transfer, leg) for leg in transfer.legs if leg.channel is channel]

    def _name(self, channel: Channel, backend: str) -> None:
        if channel not in self._named:
            self._named.add(channel)
            _log.info("kv pages go by %s", backend, extra={"peer": channel.peer})

    def _answered(self, channel: Channel, ticket: int, error: str | None) -> None:
        channel.unanswered = max(channel.unanswered - 1, 0)
        for backend in self._backends.values():
            backend.answered(ticket, error)

    def _holds(self, pages: Sequence[int]) -> bool:
        return all(0 <= page < self._pool.pages for page in pages)
