"""The decode side of a hand-over: pages offered under a lease, and their way back (hand-over.md).

    live ──TransferDone──▶ gone: the request decodes on these pages
      ├── Refused ──▶ gone: nothing was posted, the pages are free
      └── cancelled, lease lost, peer lost ──▶ barred ──▶ gone: AbortAck, all ranks fenced, or the
                                                          pod gone

The pages of a barred reservation are quarantined: the prefill side may still write them.
"""

from dataclasses import dataclass, field

from pds_engine.errors import GroupError, NotFinite, PdsError, TransferFailed
from pds_engine.messages import (
    Abort,
    AbortAck,
    Expect,
    Forget,
    Forgotten,
    KvEndpoint,
    PeerGone,
    Queued,
    Refused,
    TransferDone,
    TransferOffer,
)
from pds_engine.scheduler.digest import token_digest
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.party import WORKERS, Party
from pds_engine.scheduler.request import Request

QUARANTINE_SHARE = 0.25
"""Above this share of the pool in lasting quarantine, the group restarts itself (hand-over.md)."""


@dataclass(slots=True, eq=False)
class Reservation:
    """Pages that a prefill group was offered. `pages` is set once they are barred."""

    request: Request
    epoch: int
    prefill: Party
    expires: float
    incarnation: str
    """The prefill scheduler's; "" until its Welcome: nothing was sent to it yet."""
    barred_at: float = 0.0
    pages: tuple[int, ...] = ()
    fenced: set[int] = field(default_factory=set)
    """Ranks that cannot be written to unseen any more."""

    @property
    def key(self) -> tuple[str, int]:
        return self.request.id, self.epoch


class DecodeSide:
    """All reservations for requests that a prefill group hands over."""

    def __init__(self, ledger: Ledger, incarnation: str) -> None:
        self._ledger = ledger
        self._out = ledger.out
        self._incarnation = incarnation
        self._epoch = 0
        self._peers: dict[Party, str] = {}
        """Incarnations of the prefill schedulers that we are connected to."""
        self.live: dict[str, Reservation] = {}
        self.barred: dict[tuple[str, int], Reservation] = {}
        self.endpoints: tuple[KvEndpoint, ...] = ()
        self.kv_fingerprint = ""

    # ---- the way forward -----------------------------------------------------------------------

    def offer(self, request: Request, now: float) -> None:
        """Offer the request's pages to its prefill group, except those of its cached prefix, and
        of what lies behind its window."""
        source = request.submit.source
        if source is None:
            raise TransferFailed(f"{request.id} names no prefill group")
        self._epoch += 1
        prefill = Party("prefill", source.address)
        reservation = Reservation(
            request,
            self._epoch,
            prefill,
            now + self._ledger.settings.kv.lease_seconds,
            self._peers.get(prefill, ""),
        )
        self.live[request.id] = reservation
        pages = self._ledger.offer(request)
        self._out.put(WORKERS, Expect(transfer=request.id, epoch=self._epoch, pages=pages))
        self._out.put(
            prefill,
            TransferOffer(
                transfer=request.id,
                epoch=self._epoch,
                prompt_digest=token_digest(request.context),
                start_token=request.shared * self._ledger.settings.kv.page_size,
                pages=pages,
                incarnation=self._incarnation,
                kv_fingerprint=self.kv_fingerprint,
                ranks=self.endpoints,
            ),
        )

    def welcome(self, prefill: Party, incarnation: str) -> None:
        """The prefill scheduler has said who it is. Messages are sent to it only from now on."""
        self._peers[prefill] = incarnation
        for reservation in [*self.live.values(), *self.barred.values()]:
            if reservation.prefill == prefill and not reservation.incarnation:
                reservation.incarnation = incarnation

    def queued(self, prefill: Party, message: Queued, now: float) -> None:
        """The prefill side still means to fill these."""
        for name in message.transfers:
            reservation = self.live.get(name)
            if reservation is not None and reservation.prefill == prefill:
                reservation.expires = now + self._ledger.settings.kv.lease_seconds

    def done(self, prefill: Party, message: TransferDone) -> Request | None:
        """Every page is in place. Returns the request to decode, or None if it was given up."""
        reservation = self._live(prefill, message.transfer, message.epoch)
        if reservation is None:
            return None
        self._forget(reservation)
        return reservation.request

    # ---- the way back ----------------------------------------------------------------------------

    def refused(self, prefill: Party, message: Refused) -> None:
        """Nothing was posted, nor will be."""
        reservation = self.live.get(message.transfer)
        if reservation is not None and reservation.prefill == prefill:
            self._forget(reservation)
            self._ledger.abort(reservation.request, TransferFailed(f"refused: {message.message}"))

    def acknowledged(self, prefill: Party, message: AbortAck, now: float) -> None:
        """No rank of the prefill side posts anything more; drained, the pages are safe."""
        reservation = self._live(prefill, message.transfer, message.epoch)
        if reservation is not None:
            error: PdsError = TransferFailed(f"given up by the prefill side: {message.message}")
            if message.code == NotFinite.code:  # the transfer is not to blame, nor is P
                error = NotFinite(message.message)
            if message.drained:
                self._forget(reservation)
            else:
                self._bar(reservation, now)
            self._ledger.abort(reservation.request, error)
            return
        barred = self.barred.get((message.transfer, message.epoch))
        if barred is not None and message.drained and self._speaks_for(prefill, barred):
            self._readmit(barred)

    def drop(self, request: Request, now: float) -> None:
        """The request has ended on this side: the prefill side is to stop."""
        reservation = self.live.get(request.id)
        if reservation is None or reservation.request is not request:
            return
        self._bar(reservation, now)
        self._abort(reservation)

    def forgotten(self, message: Forgotten) -> None:
        """One rank places no more bytes of it; fenced by all, nobody can write the pages unseen."""
        reservation = self.barred.get((message.transfer, message.epoch))
        if reservation is None or not message.fenced:
            return
        reservation.fenced.add(message.rank)
        if len(reservation.fenced) == self._ledger.settings.ranks:
            self._readmit(reservation)

    def lost(self, prefill: Party, now: float) -> None:
        """The connection is lost. Pages that were never offered are free.

        The others may still be written: they are barred, and aborted over a new connection if
        there is one.
        """
        self._peers.pop(prefill, None)
        for reservation in [r for r in self.live.values() if r.prefill == prefill]:
            if reservation.incarnation:
                self._bar(reservation, now)
            else:
                self._forget(reservation)
            self._ledger.abort(reservation.request, TransferFailed("the prefill side is lost"))
        for reservation in [r for r in self.barred.values() if r.prefill == prefill]:
            if reservation.incarnation:
                self._abort(reservation)
            else:
                self._readmit(reservation)

    def peer_gone(self, message: PeerGone) -> None:
        """The pod has certainly ended: nothing of it can write any more."""
        for reservation in list(self.live.values()):
            if reservation.incarnation == message.incarnation:
                self._forget(reservation)
                self._ledger.abort(
                    reservation.request, TransferFailed("the prefill side's pod has gone")
                )
        for reservation in list(self.barred.values()):
            if reservation.incarnation == message.incarnation:
                self._readmit(reservation)

    def tick(self, now: float) -> None:
        """Give up what the prefill side has not renewed.

        Raises:
            GroupError: too much of the pool is in quarantine for longer than a lease.
        """
        for reservation in [r for r in self.live.values() if now >= r.expires]:
            self.drop(reservation.request, now)
            error = TransferFailed(f"{reservation.prefill.name} has not renewed its lease")
            self._ledger.abort(reservation.request, error)
        lease, total = self._ledger.settings.kv.lease_seconds, self._ledger.pool.total
        lasting = sum(len(r.pages) for r in self.barred.values() if now - r.barred_at >= lease)
        if lasting > QUARANTINE_SHARE * total:
            raise GroupError(
                f"{lasting} of {total} pages are in quarantine since their prefill side was lost",
                hint="the group restarts; find out why aborts are not acknowledged",
            )

    # ---- steps of the above ------------------------------------------------------------------

    def _live(self, prefill: Party, transfer: str, epoch: int) -> Reservation | None:
        reservation = self.live.get(transfer)
        if reservation is None or (reservation.prefill, reservation.epoch) != (prefill, epoch):
            return None
        return reservation

    def _speaks_for(self, prefill: Party, reservation: Reservation) -> bool:
        """A successor at the same address cannot vouch for what its predecessor had posted."""
        same_place = reservation.prefill == prefill
        return same_place and self._peers.get(prefill) == reservation.incarnation

    def _forget(self, reservation: Reservation) -> None:
        """Nothing will be written any more; the pages are the request's own again."""
        del self.live[reservation.request.id]
        self._out.put(WORKERS, Forget(transfer=reservation.request.id, epoch=reservation.epoch))

    def _bar(self, reservation: Reservation, now: float) -> None:
        self._forget(reservation)
        reservation.pages = self._ledger.quarantine(reservation.request)
        reservation.barred_at = now
        self.barred[reservation.key] = reservation

    def _abort(self, reservation: Reservation) -> None:
        self._out.put(
            reservation.prefill,
            Abort(
                transfer=reservation.request.id,
                epoch=reservation.epoch,
                incarnation=self._incarnation,
            ),
        )

    def _readmit(self, reservation: Reservation) -> None:
        del self.barred[reservation.key]
        self._ledger.readmit(reservation.pages)
