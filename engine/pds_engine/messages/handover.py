"""The hand-over of KV pages: inside a group, and between two schedulers (hand-over.md)."""

from pds_engine.messages.base import FinishReason, Message
from pds_engine.messages.joining import KvEndpoint
from pds_engine.messages.requests import TokenLogprobs


class OpenTransfer(Message, frozen=True, kw_only=True):
    """P scheduler → its workers: pushes of `transfer` go to these ranks of the peer."""

    transfer: str
    epoch: int
    peers: tuple[KvEndpoint, ...]


class CloseTransfer(Message, frozen=True, kw_only=True):
    """Stop posting for this transfer, drain what is posted, then answer TransferClosed."""

    transfer: str


class PushDone(Message, frozen=True, kw_only=True):
    """All of this rank's writes of the transfer have completed remotely."""

    transfer: str
    rank: int
    bytes: int
    seconds: float


class PushFailed(Message, frozen=True, kw_only=True):
    """This rank cannot write to the peer any more; nothing of the transfer will be posted again."""

    transfer: str
    rank: int
    message: str


class TransferClosed(Message, frozen=True, kw_only=True):
    """Answer to CloseTransfer: this rank posts nothing more of it.

    `drained`: nothing is under way either. False when a silent or lost peer let the time
    pass: P frees its own pages, but must not acknowledge an abort because of it.
    """

    transfer: str
    rank: int
    drained: bool = True


class Expect(Message, frozen=True, kw_only=True):
    """D scheduler → its workers: these pages may be written by `transfer` at `epoch`."""

    transfer: str
    epoch: int
    pages: tuple[int, ...]


class Forget(Message, frozen=True, kw_only=True):
    """The transfer is over or aborted: place no more bytes of it, then answer Forgotten."""

    transfer: str
    epoch: int


class Forgotten(Message, frozen=True, kw_only=True):
    """Answer to Forget. `fenced`: no backend offered here could still write those pages unseen.

    True where every byte passes through a receiver that checks transfer and epoch (TCP, shared
    memory). False where a peer may write one-sided (NIXL): then only AbortAck or PeerGone frees
    the pages.
    """

    transfer: str
    epoch: int
    rank: int
    fenced: bool


class TransferOffer(Message, frozen=True, kw_only=True):
    """D holds pages for this request and P may fill them (hand-over.md).

    `transfer` is the request id.
    """

    transfer: str
    epoch: int
    prompt_digest: bytes
    start_token: int
    """Page-aligned: tokens before it are D's own prefix hit and are not pushed."""
    pages: tuple[int, ...]
    """D's pages for tokens start_token … end of the prompt."""
    incarnation: str
    kv_fingerprint: str
    ranks: tuple[KvEndpoint, ...]


class Queued(Message, frozen=True, kw_only=True):
    """P knows the offers and works or waits: D's leases on these transfers are renewed."""

    transfers: tuple[str, ...]


class Refused(Message, frozen=True, kw_only=True):
    """P rejects this offer; D frees the pages at once, nothing was posted."""

    transfer: str
    code: str
    message: str


class TransferDone(Message, frozen=True, kw_only=True):
    """The closing record: every page is in place on D, and this is what P sampled."""

    transfer: str
    epoch: int
    token: int
    logprobs: TokenLogprobs | None
    cached_tokens: int
    finish_reason: FinishReason | None
    """Set: the request ended with its first token, D only ends the stream."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()


class Abort(Message, frozen=True, kw_only=True):
    """D no longer wants this transfer. It may come over another connection than the offer did."""

    transfer: str
    epoch: int
    incarnation: str
    """D's: the offer's."""


class AbortAck(Message, frozen=True, kw_only=True):
    """Every P rank has stopped and drained: D's pages of the transfer may return to its pool.

    P also sends it when it gives a transfer up itself; `code` then says why. Not `drained`:
    P posts no more, but a write may still be under way, and D's pages stay in quarantine.
    """

    transfer: str
    epoch: int
    code: str = ""
    message: str = ""
    drained: bool = True
