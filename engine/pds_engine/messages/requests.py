"""Requests: what the API server asks of the scheduler, and what it answers."""

from msgspec import Struct

from pds_engine.messages.base import FinishReason, Message, Role


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
    prompt_logprobs: int | None = None
    """None: none; k ≥ 0: those of each prompt token after the first, and of the k likeliest."""


class Source(Struct, frozen=True, array_like=True, kw_only=True):
    """On role=decode: the prefill group that hands this request over."""

    address: str
    """host:port of the P scheduler's ROUTER."""
    group: str


class Submit(Message, frozen=True, kw_only=True):
    """A request, new or to be continued: the one message in which work arrives.

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
    since: float | None = None
    """When its client asked, in seconds since the epoch, by the router: its age in every group that
    it comes to. None: now."""
    resumable: bool = False
    """When it fails as Preempted, a router with a journal goes on with it in another group."""


class Cancel(Message, frozen=True, kw_only=True):
    """The client has gone, or a stop string ended the text: forget the request, free its pages."""

    request_id: str


class Room(Message, frozen=True, kw_only=True):
    """Scheduler of a dp rank → API server, at dp above 1: what it could admit now. On every change,
    so that the server binds waiting requests to ranks that have room for them."""

    seen: int
    """Submits of this server that are counted in: later ones take from what is said here."""
    slots: int
    pages: int
    waiting: int
    """Requests that wait here already and cannot all be admitted now, such as preempted ones."""
    first: int = 0
    """Priority of the first of them. One that goes before it could be admitted with …"""
    first_slots: int = 0
    first_pages: int = 0
    """… these."""


class Offered(Message, frozen=True, kw_only=True):
    """dp rank 0 of a prefill group → API server: a decode group has offered pages for this request,
    which may now be bound to a dp rank."""

    request_id: str


class Withdrawn(Message, frozen=True, kw_only=True):
    """dp rank 0 of a prefill group → API server: that offer is gone; it was not handed on."""

    request_id: str


class Claimed(Message, frozen=True, kw_only=True):
    """API server → dp rank 0: it has the request of this offer, which is to be kept until it can be
    bound."""

    request_id: str


class Bound(Message, frozen=True, kw_only=True):
    """API server → dp rank 0 of a prefill group: this request goes to that dp rank, and so does its
    offer."""

    request_id: str
    dp_rank: int


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
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Scores of the prompt's tokens from the second on, when asked for; with the first token."""


class Failed(Message, frozen=True, kw_only=True):
    """A request ended with an error. `code` is an errors.PdsError.code; `status` HTTP's."""

    request_id: str
    code: str
    message: str
    status: int = 500
    retry_after: int | None = None


class PeerGone(Message, frozen=True, kw_only=True):
    """The pod of this incarnation has certainly ended: nothing of it can write any more."""

    incarnation: str
