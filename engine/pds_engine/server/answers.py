"""What both completion formats share: usage, server-sent events, the journal."""

from typing import Protocol

import msgspec
from msgspec import UNSET, Struct, UnsetType

from pds_engine.messages import TokenLogprobs
from pds_engine.server.job import Job
from pds_engine.server.session import ChoiceEvent, Usage
from pds_engine.text.emit import Event, Logprob
from pds_engine.text.tokenizer import Tokenizer

DONE = b"data: [DONE]\n\n"
encode = msgspec.json.Encoder().encode


class CachedTokens(Struct, frozen=True):
    cached_tokens: int


class WireUsage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


def wire_usage(usage: Usage) -> WireUsage:
    return WireUsage(
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.prompt_tokens + usage.completion_tokens,
        CachedTokens(usage.cached_tokens),
    )


class PromptScore(Struct, frozen=True):
    """As vLLM answers it. `rank`: 1 is the likeliest; null when it is not among those listed."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptScores = list[dict[str, PromptScore] | None]
"""One entry a token of the prompt, by token id; null for the first, which follows nothing."""


def prompt_scores(
    job: Job, choice: int, scores: tuple[TokenLogprobs, ...]
) -> PromptScores | UnsetType:
    """The answer's `prompt_logprobs`, where it was asked for."""
    count = job.prompt_logprobs
    if count is None:
        return UNSET
    tokenizer = job.rules.tokenizer
    scored: PromptScores = []
    for id, one in scored_prompt(job, choice, scores):
        if one is None:
            scored.append(None)
            continue
        top = one.top[:count]
        ranks = {other: rank for rank, (other, _) in enumerate(top, 1)}
        values = {id: one.chosen, **dict(top)}
        scored.append(
            {
                str(each): PromptScore(finite(value), ranks.get(each), spelt(tokenizer, each))
                for each, value in values.items()
            }
        )
    return scored


def scored_prompt(
    job: Job, choice: int, scores: tuple[TokenLogprobs, ...]
) -> list[tuple[int, TokenLogprobs | None]]:
    """The prompt's ids with their scores. The first has none, nor has any of a resumed request:
    its client has them already."""
    ids = job.submits[choice].prompt_ids
    unknown = [None] * (len(ids) - 1 - len(scores))
    return list(zip(ids, (None, *scores, *unknown), strict=True))


def spelt(tokenizer: Tokenizer, id: int) -> str:
    """A token as text; bytes that are no whole character become U+FFFD."""
    return tokenizer.piece(id).decode(errors="replace")


class Frame:
    """JSON that is alike but for one text: the rest of it is encoded once.

    whole: with an empty text, as the value of `key`. (A quotation mark within a string would be
    escaped, so nothing else looks like the key.)
    """

    __slots__ = ("_after", "_before")

    def __init__(self, whole: bytes, key: bytes) -> None:
        before, found, self._after = whole.partition(b'"%s":""' % key)
        self._before = before + found[:-2]

    def around(self, text: str) -> bytes:
        return self._before + encode(text) + self._after


def plain(event: Event) -> bool:
    """Whether its chunk says nothing but its text."""
    return not (event.first or event.logprobs or event.finish_reason)


class AnswerFormat(Protocol):
    """One of the two formats."""

    def chunk(self, one: ChoiceEvent) -> bytes:
        """One event as JSON."""

    def usage(self, usage: Usage) -> bytes:
        """The last chunk of a stream, JSON, when the client asked for it."""

    def body(self, events: list[ChoiceEvent], usage: Usage) -> bytes:
        """The whole answer as JSON, of all events of all choices."""


def server_sent(job: Job, one: ChoiceEvent, data: bytes) -> bytes:
    """One event of a stream, after its line of journal when there is one.

    The line is a comment, `: pds <count> <ids>`: output tokens so far, and those since the line
    before, separated by commas. ` end` follows them in an event of the last token. The router holds
    such events until the stream is whole, so that it never resumes a stream that has ended.
    """
    event = one.event
    if job.journal and (event.ids or one.last):
        ids = ",".join(map(str, event.ids))
        end = b" end" if one.last else b""
        return b": pds %d %s%s\ndata: %s\n\n" % (event.count, ids.encode(), end, data)
    return b"data: %s\n\n" % data


def broken_off(job: Job, status: int, error: bytes) -> bytes:
    """The last event of a stream that failed. `error` is OpenAI's object, `status` HTTP's.

    A client gets it as an event, on which OpenAI's SDKs raise. A router that keeps the journal gets
    a comment, `: pds failed <status> <error>`, and goes on with the stream elsewhere.
    """
    if job.journal:
        return b": pds failed %d %s\n\n" % (status, error)
    return b"data: %s\n\n" % error


class WholeChoice(Struct, frozen=True):
    """All events of one choice, as one."""

    text: str
    logprobs: tuple[Logprob, ...]
    finish_reason: str | None
    stop_reason: str | int | None
    prompt: tuple[TokenLogprobs, ...]


def joined(events: list[ChoiceEvent], choices: int) -> list[WholeChoice]:
    """The events of each choice, joined."""
    of_choice: list[list[Event]] = [[] for _ in range(choices)]
    for one in events:
        of_choice[one.choice].append(one.event)
    return [
        WholeChoice(
            "".join(event.text for event in mine),
            tuple(scored for event in mine for scored in event.logprobs),
            mine[-1].finish_reason if mine else None,
            mine[-1].stop_reason if mine else None,
            mine[0].prompt if mine else (),
        )
        for mine in of_choice
    ]


def finite(logprob: float) -> float:
    """JSON has no infinity; -9999 is what vLLM answers in its place."""
    return max(logprob, -9999.0)
