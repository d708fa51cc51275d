"""The face of a prefill group of several dp ranks: dp rank 0's part for all of them.

Decode groups know one address, dp rank 0's. It keeps an offer until the API server has bound the
request to a dp rank; from then on it passes on what the two sides say to each other. So the choice
of the rank is made late, and a decode group of any release need not know of it.
"""

from pds_engine.errors import PdsError
from pds_engine.messages import (
    Abort,
    AbortAck,
    Bound,
    Claimed,
    Queued,
    Refused,
    Relay,
    RelayLost,
    TransferDone,
    TransferOffer,
)
from pds_engine.scheduler.handover_p import PrefillSide
from pds_engine.scheduler.party import REPLICAS, SERVERS, Handlers, Outbox, Party, failure


class Front:
    """Which dp rank has whose hand-over."""

    def __init__(self, prefill: PrefillSide, out: Outbox) -> None:
        self._prefill = prefill
        self._out = out
        self._ranks: dict[str, int] = {}
        """Dp ranks of requests that were handed on, by transfer."""
        prefill.tells_servers = True

    @property
    def handlers(self) -> Handlers:
        """Of what the API server tells it."""
        return {
            Claimed: lambda _, message, now: self.claim(message),
            Bound: lambda _, message, now: self.bind(message),
        }

    def claim(self, message: Claimed) -> None:
        """The server has the request of a kept offer."""
        transfer = self._prefill.kept(message.request_id)
        if transfer is not None:
            transfer.claimed = True

    def bind(self, message: Bound) -> None:
        """The request goes to another dp rank: so does its offer, also if it comes later."""
        self._ranks[message.request_id] = message.dp_rank
        transfer = self._prefill.hand_on(message.request_id)
        if transfer is not None:
            self._pass_on(message.dp_rank, transfer.decode, transfer.offer)

    def takes(self, sender: Party, message: TransferOffer | Abort) -> bool:
        """Whether it is another dp rank's, and was passed on."""
        rank = self._ranks.get(message.transfer)
        if rank is None:
            return False
        self._pass_on(rank, sender, message)
        return True

    def rejected(self, offer: TransferOffer, error: PdsError) -> None:
        """The two groups do not fit: the request, which no dp rank has yet, cannot go on."""
        self._out.put(SERVERS, failure(offer.transfer, error))

    def answered(self, message: Relay) -> None:
        """Another dp rank answers a decode scheduler."""
        answer = message.message
        if isinstance(answer, Queued | Refused | TransferDone | AbortAck):
            self._out.put(Party("decode", message.peer), answer)
            if not isinstance(answer, Queued) and _final(answer):
                self._ranks.pop(answer.transfer, None)

    def lost(self, decode: Party) -> None:
        """A decode scheduler has gone: any dp rank may have hand-overs of its."""
        self._out.put(REPLICAS, RelayLost(peer=decode.name))

    def _pass_on(self, rank: int, decode: Party, message: TransferOffer | Abort) -> None:
        relay = Relay(peer=decode.name, message=message)
        self._out.put(Party("replicas", str(rank)), relay)


def _final(answer: Refused | TransferDone | AbortAck) -> bool:
    """Whether the dp rank knows no more of the transfer than any other. One that has writes under
    way does: should the decode side ask again, it must not be told that its pages are safe."""
    return not isinstance(answer, AbortAck) or answer.drained
