"""The prefill side of a hand-over: offers kept, pages pushed, transfers closed (hand-over.md).

    KEPT ──Submit──▶ MATCHED ──admission──▶ OPEN ──pushed, or given up──▶ CLOSING ──drained──▶ gone
      └──────────────────┴── Abort, expiry, peer lost ──▶ gone: nothing was posted

Workers name a transfer by its id alone, so an id is opened again only when it is closed for good.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from enum import Enum, auto

from msgspec import structs

from pds_engine.errors import InvalidRequest, PdsError, TransferFailed, Unavailable
from pds_engine.messages import (
    Abort,
    AbortAck,
    CloseTransfer,
    Offered,
    OpenTransfer,
    Push,
    PushDone,
    PushFailed,
    Queued,
    Refused,
    Token,
    TransferClosed,
    TransferDone,
    TransferOffer,
    Withdrawn,
)
from pds_engine.scheduler.digest import token_digest
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.party import SERVERS, WORKERS, Party
from pds_engine.scheduler.prefill import Chunk
from pds_engine.scheduler.request import Phase, Request


class TransferState(Enum):
    """How far a transfer is."""

    KEPT = auto()
    """The offer came before its request."""
    MATCHED = auto()
    """Request and offer are there; the request waits in the queue."""
    OPEN = auto()
    """Workers push."""
    CLOSING = auto()
    """Workers drain."""


@dataclass(slots=True, eq=False)
class Transfer:
    """One offer, and what became of it."""

    offer: TransferOffer
    decode: Party
    since: float
    state: TransferState = TransferState.KEPT
    request: Request | None = None
    posted: int = 0
    """Its first pages, so many, are in pushes that were ordered, or are D's own."""
    pushed: set[int] = field(default_factory=set)
    """Ranks whose writes are all in place."""
    closed: set[int] = field(default_factory=set)
    claimed: bool = False
    """Its request waits in the group's queue (dp/front.py): the offer is kept however long."""
    drained: bool = True
    """No closed rank has writes under way."""
    record: TransferDone | None = None
    """The closing record, once the first token is sampled."""
    given_up: AbortAck | None = None
    """The answer to D once every rank has drained; None after a TransferDone, or if D is lost."""


class PrefillSide:
    """All transfers that this scheduler was offered."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._out = ledger.out
        self.unoffered: dict[str, Request] = {}
        """Requests that wait for their offer; WAITING, outside the queue."""
        self.transfers: dict[str, Transfer] = {}
        """Kept, matched or open, by id."""
        self.closing: dict[str, Transfer] = {}
        self._undrained: set[tuple[str, int, str]] = set()
        """Closed with writes under way: never acknowledged as drained. Few, so all are kept."""
        self._next_renewal = 0.0
        self.tells_servers = False
        """Kept offers are announced: the API server binds their requests to dp ranks."""

    # ---- before the first chunk --------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """A request has come: into the queue if its offer is there, else it waits for it."""
        transfer = self.transfers.get(request.id)
        if transfer is None or transfer.request is not None:
            self.unoffered[request.id] = request
        else:
            self._match(request, transfer)

    def offer(
        self, decode: Party, message: TransferOffer, now: float, refusal: PdsError | None
    ) -> None:
        """An offer has come: matched with its request, kept for it, or refused with `refusal`.

        `refusal` is the scheduler's reason to admit nothing new, such as draining. A request that
        is already here gets its offer all the same.
        """
        request = self.unoffered.get(message.transfer)
        held = self.transfers.get(message.transfer)
        if request is None and refusal is None and self._kept() >= self._bound():
            refusal = Unavailable("too many offers wait for their requests")
        if held is not None and held.state is not TransferState.KEPT:
            refusal = TransferFailed(f"{message.transfer} is already being handed over")
        elif request is not None:
            refusal = None
        if refusal is not None:
            self._refuse(decode, message.transfer, refusal)
            return
        if held is not None:
            self._refuse(held.decode, message.transfer, TransferFailed("a newer offer took over"))
        transfer = Transfer(message, decode, now)
        self.transfers[message.transfer] = transfer
        if request is not None:
            del self.unoffered[message.transfer]
            self._match(request, transfer)
        elif self.tells_servers:
            self._out.put(SERVERS, Offered(request_id=message.transfer))

    def reject(self, decode: Party, message: TransferOffer, error: PdsError) -> None:
        """The two groups do not fit: neither the offer nor its request can go on."""
        self._refuse(decode, message.transfer, error)
        request = self.unoffered.get(message.transfer)
        if request is not None:
            self._abort(request, error)

    def kept(self, name: str) -> Transfer | None:
        """The offer that waits for its request, if there is one."""
        transfer = self.transfers.get(name)
        return transfer if transfer and transfer.state is TransferState.KEPT else None

    def hand_on(self, name: str) -> Transfer | None:
        """Another dp rank takes the kept offer: nothing is known of it here any more."""
        return self.transfers.pop(name) if self.kept(name) else None

    def give_up_kept(self, name: str) -> None:
        """The request of a kept offer ended before it was bound to a dp rank."""
        if (transfer := self.kept(name)) is not None:
            self._give_up(transfer, "cancelled", "the prefill side gave the request up")

    def is_closing(self, request: Request) -> bool:
        """Whether an earlier transfer of this id is not yet closed."""
        return request.id in self.closing

    # ---- from the first chunk to the last ------------------------------------------------------

    def open(self, request: Request) -> None:
        """The request is admitted: workers may push its pages."""
        transfer = self.transfers[request.id]
        transfer.state = TransferState.OPEN
        self._ledger.begin_transfer(request)
        self._out.put(
            WORKERS,
            OpenTransfer(
                transfer=request.id, epoch=transfer.offer.epoch, peers=transfer.offer.ranks
            ),
        )

    def push(self, request: Request, chunk: Chunk) -> Push:
        """The pages that are complete with `chunk`, to D's pages.

        The first chunk also brings the pages of P's cached prefix. Those that D has are left out,
        and those behind its window, which P may have given back.
        """
        transfer, settings = self.transfers[request.id], self._ledger.settings
        offer = transfer.offer
        skipped = offer.start_token // settings.kv.page_size
        first = max(transfer.posted, skipped)
        end = max(settings.pages_for(chunk.start + chunk.length), first)
        transfer.posted = end
        return Push(
            transfer=request.id,
            src_pages=tuple(request.pages[first - request.dropped : end - request.dropped]),
            dst_pages=offer.pages[first - skipped : end - skipped],
            last=chunk.samples,
        )

    def sampled(self, request: Request, token: Token) -> None:
        """The first token is known: the record that closes the transfer once all is pushed."""
        transfer = self.transfers[request.id]
        transfer.record = TransferDone(
            transfer=request.id,
            epoch=transfer.offer.epoch,
            token=token.token,
            logprobs=token.logprobs,
            cached_tokens=token.cached_tokens,
            finish_reason=token.finish_reason,
            prompt_logprobs=token.prompt_logprobs,
        )
        self._complete(transfer)

    def pushed(self, message: PushDone) -> None:
        """One rank's writes are all in place."""
        transfer = self.transfers.get(message.transfer)
        if transfer is not None and transfer.state is TransferState.OPEN:
            transfer.pushed.add(message.rank)
            self._complete(transfer)

    def push_failed(self, message: PushFailed) -> None:
        """One rank cannot write to D: nothing is handed over."""
        transfer = self.transfers.get(message.transfer)
        if transfer is not None and transfer.state is TransferState.OPEN:
            self._fail(
                transfer,
                TransferFailed(f"rank {message.rank} cannot push: {message.message}"),
            )

    def closed(self, message: TransferClosed) -> None:
        """One rank has drained; with the last one, D may use its pages again, and so may we."""
        transfer = self.closing.get(message.transfer)
        if transfer is None:
            return
        transfer.closed.add(message.rank)
        transfer.drained &= message.drained
        if len(transfer.closed) < self._ledger.settings.ranks:
            return
        del self.closing[message.transfer]
        if not transfer.drained:
            offer = transfer.offer
            self._undrained.add((offer.transfer, offer.epoch, offer.incarnation))
        if transfer.given_up is not None:
            self._out.put(
                transfer.decode, structs.replace(transfer.given_up, drained=transfer.drained)
            )
        if transfer.request is not None:
            self._ledger.end_transfer(transfer.request)

    # ---- giving up ---------------------------------------------------------------------------

    def abort(self, decode: Party, message: Abort) -> None:
        """D no longer wants the transfer: acknowledged once no rank can write to its pages.

        D may have connected anew since its offer, even before we saw the old connection end.
        """
        name = message.transfer
        candidates = self.transfers.get(name), self.closing.get(name)
        transfer = next((t for t in candidates if t and _names(message, t.offer)), None)
        if transfer is None:
            drained = (name, message.epoch, message.incarnation) not in self._undrained
            acknowledgement = AbortAck(transfer=name, epoch=message.epoch, drained=drained)
            self._out.put(decode, acknowledgement)
            return
        transfer.decode = decode
        if transfer.state is TransferState.CLOSING:
            transfer.given_up = transfer.given_up or AbortAck(transfer=name, epoch=message.epoch)
        else:
            self._fail(transfer, TransferFailed("the decode side gave the request up"))

    def drop(self, request: Request, code: str) -> None:
        """The request has ended on this side before its first token."""
        self.unoffered.pop(request.id, None)
        transfer = self.transfers.get(request.id)
        if transfer is not None and transfer.request is request:
            self._give_up(transfer, code, "the prefill side gave the request up")

    def lost(self, decode: Party) -> None:
        """A decode scheduler has gone: none of its pages are wanted any more."""
        for transfer in [t for t in self.transfers.values() if t.decode == decode]:
            self._fail(transfer, TransferFailed("the decode side is lost"))
        for transfer in self.closing.values():
            if transfer.decode == decode:
                transfer.given_up = None

    def tick(self, now: float) -> None:
        """Renew the leases of all offers, and let go of what waited too long for its other half."""
        lease = self._ledger.settings.kv.lease_seconds
        for request in [r for r in self.unoffered.values() if now - r.arrived >= lease]:
            # Silent with the request, so not Unavailable: that says that nobody began anything.
            self._abort(request, TransferFailed("no decode group has offered pages for it in time"))
        for transfer in [t for t in self.transfers.values() if t.state is TransferState.KEPT]:
            if now - transfer.since >= lease and not transfer.claimed:
                self._let_go(transfer)
                self._refuse(
                    transfer.decode,
                    transfer.offer.transfer,
                    Unavailable("the request of this offer has not come"),
                )
        if now >= self._next_renewal:
            self._next_renewal = now + lease / 3
            self._renew()

    # ---- steps of the above --------------------------------------------------------------------

    def _match(self, request: Request, transfer: Transfer) -> None:
        problem = self._mismatch(request, transfer.offer)
        if problem is not None:
            del self.transfers[request.id]
            self._refuse(transfer.decode, request.id, problem)
            self._abort(request, problem)
            return
        transfer.request = request
        transfer.state = TransferState.MATCHED
        self._ledger.enqueue(request)

    def _mismatch(self, request: Request, offer: TransferOffer) -> PdsError | None:
        settings = self._ledger.settings
        if offer.prompt_digest != token_digest(request.context):
            return InvalidRequest("prefill and decode side were given different prompts")
        start, pages = offer.start_token, len(offer.pages)
        if start % settings.kv.page_size or not 0 <= start < request.context_len:
            return TransferFailed(f"pages were offered from token {start} on")
        if start < settings.behind(request.context_len) * settings.kv.page_size:
            return TransferFailed(f"pages were offered from token {start} on, behind the window")
        if pages != (wanted := settings.pages_for(request.context_len - start)):
            return TransferFailed(f"{pages} pages were offered, {wanted} are needed")
        return None

    def _complete(self, transfer: Transfer) -> None:
        if transfer.record is None or len(transfer.pushed) < self._ledger.settings.ranks:
            return
        self._out.put(transfer.decode, transfer.record)
        self._close(transfer)

    def _fail(self, transfer: Transfer, error: PdsError) -> None:
        request = transfer.request
        self._give_up(transfer, error.code, error.message)
        if request is not None and request.phase is not Phase.ENDED:
            self._abort(request, error)

    def _give_up(self, transfer: Transfer, code: str, message: str) -> None:
        offer = transfer.offer
        acknowledgement = AbortAck(
            transfer=offer.transfer, epoch=offer.epoch, code=code, message=message
        )
        if transfer.state is TransferState.OPEN:
            transfer.given_up = acknowledgement
            self._close(transfer)
        else:
            self._let_go(transfer)
            self._out.put(transfer.decode, acknowledgement)

    def _let_go(self, transfer: Transfer) -> None:
        """Nothing of it was posted."""
        name = transfer.offer.transfer
        del self.transfers[name]
        if self.tells_servers and transfer.state is TransferState.KEPT:
            self._out.put(SERVERS, Withdrawn(request_id=name))

    def _close(self, transfer: Transfer) -> None:
        name = transfer.offer.transfer
        transfer.state = TransferState.CLOSING
        self.closing[name] = self.transfers.pop(name)
        self._out.put(WORKERS, CloseTransfer(transfer=name))

    def _abort(self, request: Request, error: PdsError) -> None:
        self.unoffered.pop(request.id, None)
        self._ledger.abort(request, error)

    def _refuse(self, decode: Party, transfer: str, error: PdsError) -> None:
        self._out.put(decode, Refused(transfer=transfer, code=error.code, message=error.message))

    def _renew(self) -> None:
        by_decode: defaultdict[Party, list[str]] = defaultdict(list)
        for name, transfer in self.transfers.items():
            by_decode[transfer.decode].append(name)
        for decode, names in by_decode.items():
            self._out.put(decode, Queued(transfers=tuple(names)))

    def _kept(self) -> int:
        return sum(transfer.state is TransferState.KEPT for transfer in self.transfers.values())

    def _bound(self) -> int:
        return self._ledger.settings.most_open  # dp rank 0 keeps those of all


def _names(message: Abort, offer: TransferOffer) -> bool:
    return (message.epoch, message.incarnation) == (offer.epoch, offer.incarnation)
