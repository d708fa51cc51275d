"""The hand-over's messages: which side each is for, and on which dp rank (hand-over.md)."""

from collections.abc import Callable

from pds_engine.errors import PdsError, TransferFailed
from pds_engine.messages import (
    Abort,
    AbortAck,
    Forgotten,
    PeerGone,
    PushDone,
    PushFailed,
    Queued,
    Refused,
    Relay,
    RelayLost,
    TransferClosed,
    TransferDone,
    TransferOffer,
    Welcome,
)
from pds_engine.scheduler.dp.front import Front
from pds_engine.scheduler.finish import next_token
from pds_engine.scheduler.handover_d import DecodeSide
from pds_engine.scheduler.handover_p import PrefillSide
from pds_engine.scheduler.lifecycle import Ledger
from pds_engine.scheduler.party import Handlers, Party
from pds_engine.scheduler.request import Phase, Request


class HandOver:
    """Both sides of it.

    Args:
        closed: why nothing new is taken on, such as draining.
    """

    def __init__(
        self,
        ledger: Ledger,
        incarnation: str,
        dp_rank: int,
        closed: Callable[[], PdsError | None],
    ) -> None:
        self.prefill = PrefillSide(ledger)
        self.decode = DecodeSide(ledger, incarnation)
        self._ledger = ledger
        self._closed = closed
        settings = ledger.settings
        leads = settings.role == "prefill" and settings.parallelism.dp > 1 and dp_rank == 0
        self._front = Front(self.prefill, ledger.out) if leads else None

    @property
    def handlers(self) -> Handlers:
        """Of all messages that are about it."""
        return {
            **(self._front.handlers if self._front is not None else {}),
            PushDone: lambda _, message, now: self.prefill.pushed(message),
            PushFailed: lambda _, message, now: self.prefill.push_failed(message),
            TransferClosed: lambda _, message, now: self.prefill.closed(message),
            TransferOffer: self._offer,
            Abort: lambda sender, message, now: self._aborts(sender, message),
            Forgotten: lambda _, message, now: self.decode.forgotten(message),
            Welcome: lambda sender, message, now: self.decode.welcome(sender, message.incarnation),
            Queued: self.decode.queued,
            Refused: lambda sender, message, now: self.decode.refused(sender, message),
            TransferDone: lambda sender, message, now: self._done(sender, message),
            AbortAck: self.decode.acknowledged,
            PeerGone: lambda _, message, now: self.decode.peer_gone(message),
            Relay: lambda _, message, now: self._relayed(message, now),
            RelayLost: lambda _, message, now: self.prefill.lost(Party("decode", message.peer)),
        }

    def lost(self, party: Party, now: float) -> None:
        """The connection to a decode or a prefill scheduler has ended."""
        if party.kind == "decode":
            self.prefill.lost(party)
            if self._front is not None:
                self._front.lost(party)
        elif party.kind == "prefill":
            self.decode.lost(party, now)

    def tick(self, now: float) -> None:
        """See to leases. Raises GroupError: too many pages are in quarantine."""
        self.prefill.tick(now)
        self.decode.tick(now)

    def withdraw(self, request: Request, code: str, now: float) -> None:
        """Give up the request's hand-over, if there is one."""
        if self._ledger.settings.role == "prefill":
            self.prefill.drop(request, code)
        elif request.phase is Phase.OFFERED:
            self.decode.drop(request, now)

    def cancel(self, request_id: str) -> None:
        """A request ended in the group's queue, before any dp rank had it."""
        if self._front is not None:
            self.prefill.give_up_kept(request_id)

    # ---- steps of the above ------------------------------------------------------------------

    def _relayed(self, message: Relay, now: float) -> None:
        """What dp rank 0 passes on from a decode group, or gets to pass on to it."""
        said = message.message
        if self._front is not None:
            self._front.answered(message)
        elif isinstance(said, TransferOffer):
            self._offer(Party("decode", message.peer), said, now)
        elif isinstance(said, Abort):
            self._aborts(Party("decode", message.peer), said)

    def _aborts(self, decode: Party, message: Abort) -> None:
        if self._front is None or not self._front.takes(decode, message):
            self.prefill.abort(decode, message)

    def _offer(self, decode: Party, message: TransferOffer, now: float) -> None:
        if self._front is not None and self._front.takes(decode, message):
            return
        closed, ours = self._closed(), self.decode.kv_fingerprint
        if self._ledger.settings.role != "prefill":
            reason = f"a {self._ledger.settings.role} group takes no offers"
        elif message.kv_fingerprint != ours and ours:
            reason = f"KV formats differ: {message.kv_fingerprint} is offered, {ours} is computed"
        else:
            self.prefill.offer(decode, message, now, closed)
            return
        error = TransferFailed(reason)
        self.prefill.reject(decode, message, error)
        if self._front is not None:
            self._front.rejected(message, error)

    def _done(self, prefill: Party, message: TransferDone) -> None:
        request = self.decode.done(prefill, message)
        if request is None:
            return
        known = next_token(
            request,
            message.token,
            message.logprobs,
            message.prompt_logprobs,
            message.cached_tokens,
            message.finish_reason,
        )
        self._ledger.append(request, known)
        if known.finish_reason is None:
            self._ledger.start_decode(request)
        else:
            self._ledger.finish(request)
