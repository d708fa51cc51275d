"""Steps: what the scheduler orders, and what comes back (scheduling.md)."""

from msgspec import Struct

from pds_engine.messages.base import Message
from pds_engine.messages.requests import Sampling, TokenLogprobs


class Admit(Message, frozen=True, kw_only=True):
    """Slot `slot` now holds this request.

    Its pages cover prompt_ids + output_ids as far as known; where a window moves over them, later
    pages may come with the rows that fill them.
    """

    slot: int
    gen: int
    prompt_ids: tuple[int, ...]
    output_ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    pages: tuple[int, ...]
    """From page `first_page` of its tokens on: those before it lie behind the window."""
    first_page: int = 0


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
    scores: bool = False
    """The result has the log-probabilities of the prompt tokens that follow these positions."""


class Push(Struct, frozen=True, array_like=True, kw_only=True):
    """Once the step that carries this is done: write src_pages into the peer's dst_pages."""

    transfer: str
    src_pages: tuple[int, ...]
    dst_pages: tuple[int, ...]
    last: bool
    """The transfer's last push: PushDone follows when all its writes completed remotely."""


class StepPlan(Message, frozen=True, kw_only=True):
    """One step, the same for every stage. Steps are executed in order and never cancelled
    (scheduling.md)."""

    step_id: int
    rows: tuple[Row, ...]
    expects_output: bool
    """The last stage sends the sampled tokens to the first, for later steps to read."""
    depends_on: int
    """The last step whose tokens this one reads; -1: none."""
    padded_tokens: int
    """Of this dp rank; a multiple of tp. Without rows it is an idle batch."""
    pushes: tuple[Push, ...] = ()
    dp_tokens: tuple[int, ...] = ()
    """padded_tokens of every dp rank in this pass; () at dp 1."""


class StepDone(Message, frozen=True, kw_only=True):
    """Last stage → scheduler, for every step, middle chunks too. Tokens: sampling rows in order."""

    step_id: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs | None, ...]
    prompt_logprobs: tuple[tuple[TokenLogprobs, ...], ...] = ()
    """For rows with `scores`, in order: one for each position whose next token is the prompt's.

    They go only to the scheduler: no stage reads them, so they cause no output exchange.
    """
    unsound: tuple[int, ...] = ()
    """Which of `tokens`, by place, mean nothing: the model's scores were not finite there."""
    elapsed: float
    """Seconds from the step's launch to its result, on the last stage."""


class Release(Message, frozen=True, kw_only=True):
    """Slot `slot` of generation `gen` is free once step `after_step` is done."""

    slot: int
    gen: int
    after_step: int
