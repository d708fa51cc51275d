"""Everything that crosses a process, declared once (engine.md §2).

All of it is frozen msgspec structs, encoded as tagged MessagePack: no pickle on any socket.
Who sends what:

    API server → scheduler   Submit, Cancel, Drain, PeerGone
    scheduler → API server   Token, Failed, State
    scheduler → worker       Admit, StepPlan, Release, OpenTransfer, CloseTransfer, Expect, Forget
    worker → scheduler       Ready, StepDone, PushDone, PushFailed, TransferClosed, Forgotten, Fault
    D scheduler → P scheduler   TransferOffer, Abort
    P scheduler → D scheduler   Queued, Refused, TransferDone, AbortAck
    any DEALER → its ROUTER   Hello, first

On the wire each is preceded by its sequence number: see `wire`.
"""

from typing import Literal

from msgspec import Struct

PROTOCOL = 1  # a Hello of another version is refused by name

Role = Literal["prefill", "decode", "unified"]
Peer = Literal["worker", "server", "scheduler"]
FinishReason = Literal["stop", "length", "abort"]


class Message(Struct, frozen=True, tag=True, array_like=True, kw_only=True):
    """Base of all messages."""


class Hello(Message, frozen=True, kw_only=True):
    """The first message on every connection. A group's incarnation is fixed when it starts."""

    peer: Peer
    group: str
    incarnation: str
    rank: int
    protocol: int = PROTOCOL


class Welcome(Message, frozen=True, kw_only=True):
    """The scheduler's answer to Hello: its own incarnation, which every later Hello must carry."""

    incarnation: str


class KvEndpoint(Struct, frozen=True, array_like=True, kw_only=True):
    """Where one rank's pages can be written. `shard` is kv.layout.KvShard encoded by msgspec."""

    rank: int
    shard: bytes
    pages: int
    backends: dict[str, bytes]
    """By backend name ("nixl", "tcp", "shm"): what a peer needs to connect, opaque to the rest."""


class Ready(Message, frozen=True, kw_only=True):
    """A worker has loaded weights and allocated pages; its KV can be written at `endpoint`."""

    rank: int
    pages: int
    kv_fingerprint: str
    endpoint: KvEndpoint


class Fault(Message, frozen=True, kw_only=True):
    """A worker failed; the group follows."""

    rank: int
    code: str
    message: str


class Sampling(Struct, frozen=True, array_like=True, kw_only=True):
    """How tokens are chosen. Validated by the API server; every bound is already checked."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # no bound
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    """End-of-sequence ids included, unless ignore_eos."""
    min_tokens: int = 0
    logprobs: int | None = None
    """None: none; k ≥ 0: the chosen token's and the k likeliest."""
    choice: int = 0
    """The index of this choice among n: part of the random number's key."""


class Source(Struct, frozen=True, array_like=True, kw_only=True):
    """On role=decode: the prefill group that hands this request over."""

    address: str
    """host:port of the P scheduler's ROUTER."""
    group: str


class Submit(Message, frozen=True, kw_only=True):
    """The one form in which work arrives.

    A new request has output_ids = (); hand-over gives (t1,); migration gives all tokens so far.
    `max_tokens` counts the output from its beginning, given tokens included.
    """

    request_id: str
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...] = ()
    sampling: Sampling
    seed: int
    priority: int = 0
    deadline: float | None = None
    """Seconds since the epoch; None: none."""
    role_hint: Role = "unified"
    source: Source | None = None


class Cancel(Message, frozen=True, kw_only=True):
    """The client has gone, or a stop string ended the text: forget the request, free its pages."""

    request_id: str


class Drain(Message, frozen=True, kw_only=True):
    """Take no new requests; report when nothing is left."""

    deadline_seconds: float


class TokenLogprobs(Struct, frozen=True, array_like=True):
    """Natural-log probabilities of one output position."""

    chosen: float
    top: tuple[tuple[int, float], ...]
    """(token id, logprob), likeliest first."""


class Token(Message, frozen=True, kw_only=True):
    """One output token, as soon as it is known. `index` counts from 0 in the output."""

    request_id: str
    index: int
    token: int
    logprobs: TokenLogprobs | None = None
    finish_reason: FinishReason | None = None
    cached_tokens: int = 0
    """Prompt tokens that came from a prefix cache; set with the first token."""


class Failed(Message, frozen=True, kw_only=True):
    """A request ended without a result. `code` is an errors.PdsError.code; `status` HTTP's."""

    request_id: str
    code: str
    message: str
    status: int = 500
    retry_after: int | None = None


class PeerGone(Message, frozen=True, kw_only=True):
    """The pod of this incarnation has certainly ended: nothing of it can write any more."""

    incarnation: str


class State(Message, frozen=True, kw_only=True):
    """What `/pds/state` reports of a scheduler; sent on every change, coalesced."""

    in_flight: int
    """Requests known to the scheduler, waiting ones included."""
    running: int
    transfers_in_flight: int
    queued_tokens: int
    kv_used: int
    kv_total: int
    kv_quarantined: int
    draining: bool
    ranks_ready: int
    kv_fingerprint: str
    steps_done: int
    oldest_step_seconds: float
    """Age of the oldest step in flight; 0 when idle."""
    preemptions: int = 0


class Admit(Message, frozen=True, kw_only=True):
    """Slot `slot` now holds this request. Pages cover prompt_ids + output_ids as far as known."""

    slot: int
    gen: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    pages: tuple[int, ...]


class Row(Struct, frozen=True, array_like=True, kw_only=True):
    """One request's part of a step: positions start … start+length-1 of slot `slot` are computed.

    A decode row has length 1 and carries no token id: its input is the slot's last token.
    """

    slot: int
    gen: int
    start: int
    length: int
    new_pages: tuple[int, ...] = ()
    samples: bool = False


class Push(Struct, frozen=True, array_like=True, kw_only=True):
    """Once the step that carries this is done: write src_pages into the peer's dst_pages."""

    transfer: str
    src_pages: tuple[int, ...]
    dst_pages: tuple[int, ...]
    last: bool
    """The transfer's last push: PushDone follows when all its writes completed remotely."""


class StepPlan(Message, frozen=True, kw_only=True):
    """One step, the same for every stage: executed in order, never cancelled (engine.md §2)."""

    step_id: int
    rows: tuple[Row, ...]
    expects_output: bool
    """The last stage sends the sampled tokens to the first, for later steps to read."""
    depends_on: int
    """The last step whose tokens this one reads; -1: none."""
    padded_tokens: int
    padded_rows: int
    graph: str | None = None
    copies: tuple[tuple[int, int], ...] = ()
    """(source, destination) pages, copied before the step."""
    pushes: tuple[Push, ...] = ()


class StepDone(Message, frozen=True, kw_only=True):
    """Last stage → scheduler, for every step, middle chunks too. Tokens: sampling rows in order."""

    step_id: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs | None, ...]
    elapsed: float
    """Seconds from the step's launch to its result, on the last stage."""


class Release(Message, frozen=True, kw_only=True):
    """Slot `slot` of generation `gen` is free once step `after_step` is done."""

    slot: int
    gen: int
    after_step: int


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

    `drained`: nothing is under way either. False when a silent or lost peer let the bound pass:
    P frees its own pages, but must not acknowledge an abort on the strength of it.
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
    memory); False where a peer may write one-sided (NIXL): then only AbortAck or PeerGone frees.
    """

    transfer: str
    epoch: int
    rank: int
    fenced: bool


class TransferOffer(Message, frozen=True, kw_only=True):
    """D holds pages for this request and P may fill them (engine.md §6).

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
    """P will not take this offer up; D frees the pages at once, nothing was posted."""

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


class Abort(Message, frozen=True, kw_only=True):
    """D no longer wants this transfer. It may come over another connection than the offer did."""

    transfer: str
    epoch: int
    incarnation: str
    """D's: the offer's."""


class AbortAck(Message, frozen=True, kw_only=True):
    """Every P rank has stopped and drained: D's pages of the transfer may return to its pool.

    Also sent unasked when P gives a transfer up; `code` then says why. Not `drained`: P posts no
    more, but a write may still be under way, so that D's pages stay in quarantine.
    """

    transfer: str
    epoch: int
    code: str = ""
    message: str = ""
    drained: bool = True


# fmt: off
AnyMessage = (
    Hello | Welcome | Ready | Fault
    | Submit | Cancel | Drain | PeerGone | Token | Failed | State
    | Admit | StepPlan | StepDone | Release
    | OpenTransfer | CloseTransfer | PushDone | PushFailed | TransferClosed
    | Expect | Forget | Forgotten
    | TransferOffer | Queued | Refused | TransferDone | Abort | AbortAck
)
# fmt: on
