"""What the client gets at each token: a pure function of request and output ids (router.md).

P sends the events of the first token. D replays that token, drops its events and goes on from the
state that it leaves: together they send what one server would have sent. A resumed request replays
all tokens that it is given in the same way.
"""

from msgspec import Struct

from pds_engine.messages import TokenLogprobs
from pds_engine.text import detokenizer
from pds_engine.text.stops import Stops
from pds_engine.text.tokenizer import Tokenizer

NO_STOPS = Stops(())
Pending = tuple["Pending", int] | None
"""Tokens that are in no event yet, the newest outermost: one more copies none of the others."""


class Rules(Struct, frozen=True):
    """What the request says about its text."""

    tokenizer: Tokenizer
    stops: Stops = NO_STOPS
    """Made once for all choices."""
    stop_ids: frozenset[int] = frozenset()
    """A token that ends the output shows no text."""
    min_tokens: int = 0
    """The text of so many first tokens is not searched for stop strings."""
    include_stop: bool = False
    skip_special: bool = True


class Logprob(Struct, frozen=True):
    """The scores of one output position."""

    id: int
    offset: int
    """Characters of output before this token."""
    scores: TokenLogprobs


class Event(Struct, frozen=True):
    """Something to send: new text, new scores, the first token, or the end."""

    text: str
    count: int
    """Output tokens so far, held-back ones included."""
    ids: tuple[int, ...]
    """The tokens since the event before this one."""
    logprobs: tuple[Logprob, ...] = ()
    first: bool = False
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """The stop string, or the stop token other than the model's own, that ended the output."""
    prompt: tuple[TokenLogprobs, ...] = ()
    """With the first token, when asked for: the scores of the prompt's second token and on."""


class TextState(Struct, frozen=True):
    """How far a choice has come."""

    rules: Rules
    count: int = 0
    offset: int = 0
    """Characters decoded so far, held-back ones included."""
    partial: bytes = b""
    held: str = ""
    """The text of `node`: shorter than the longest stop string."""
    node: int = 0
    """Where the automaton of the stop strings stands."""
    pending: Pending = None
    stopped: str | None = None
    """The stop string that was found: no further token counts."""
    last: int = -1


def emit(
    state: TextState,
    token: int,
    scores: TokenLogprobs | None = None,
    prompt: tuple[TokenLogprobs, ...] = (),
) -> tuple[TextState, list[Event]]:
    """Advance by one output token, which makes at most one event.

    The first token always makes an event, so that a client sees it when it is there; a later one
    makes an event only when it releases text or scores.
    """
    if state.stopped is not None:
        return state, []
    rules = state.rules
    count = state.count + 1
    hidden = token in rules.stop_ids or (
        rules.skip_special and token in rules.tokenizer.special_ids
    )
    text, partial = detokenizer.advance(
        state.partial, b"" if hidden else rules.tokenizer.piece(token)
    )
    scored = () if scores is None else (Logprob(token, state.offset, scores),)
    if rules.stops:
        release, held, node, matched = _searched(state, count, text)
    else:
        release, held, node, matched = text, "", 0, None
    pending = (state.pending, token)
    first = state.count == 0
    due = bool(release or scored or first)
    ids: tuple[int, ...] = ()
    if due:
        ids = (token,) if state.pending is None else _in_order(pending)
    events = [Event(release, count, ids, scored, first, prompt=prompt)] if due else []
    after = TextState(
        rules,
        count,
        state.offset + len(text),
        b"" if matched is not None else partial,
        held,
        node,
        None if due else pending,
        matched,
        token,
    )
    return after, events


def _searched(state: TextState, count: int, text: str) -> tuple[str, str, int, str | None]:
    """What `text` releases, what is held then, at which node, and the stop string found."""
    rules = state.rules
    if count < rules.min_tokens:
        return text, "", 0, None  # nothing was held either
    found = rules.stops.scan(state.node, text)
    seen = state.held + text[: found.end]
    if found.matched is None:
        cut = len(seen) - found.keep
        return seen[:cut], seen[cut:], found.node, None
    cut = len(seen) - (0 if rules.include_stop else len(found.matched))
    return seen[:cut], "", 0, found.matched


def _in_order(pending: Pending) -> tuple[int, ...]:
    ids: list[int] = []
    while pending is not None:
        pending, id = pending
        ids.append(id)
    return tuple(reversed(ids))


def finish(state: TextState, reason: str, eos_ids: tuple[int, ...] = ()) -> Event:
    """The last event: what was held back, and why the output ended."""
    text = state.held + detokenizer.flush(state.partial)
    stop: str | int | None = state.stopped
    ended_by_id = reason == "stop" and stop is None and state.last in state.rules.stop_ids
    if ended_by_id and state.last not in eos_ids:
        stop = state.last
    return Event(text, state.count, _in_order(state.pending), (), False, reason, stop)
