"""The answers of /v1/chat/completions."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from pds_engine.server.answers import (
    PromptScores,
    WireUsage,
    encode,
    finite,
    prompt_scores,
    spelt,
    whole,
    wire_usage,
)
from pds_engine.server.job import Job
from pds_engine.server.session import Told, Usage
from pds_engine.text.emit import Logprob


class Score(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenScore(Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[Score]


class Logprobs(Struct, frozen=True):
    content: list[TokenScore]


class Delta(Struct, frozen=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct, frozen=True):
    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: str | None
    stop_reason: str | int | None


class Chunk(Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: WireUsage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class Spoken(Struct, frozen=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class Choice(Struct, frozen=True):
    index: int
    message: Spoken
    logprobs: Logprobs | None
    finish_reason: str | None
    stop_reason: str | int | None


class Chat(Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: WireUsage
    prompt_logprobs: PromptScores | UnsetType = UNSET
    """All choices have one prompt, and these are its first choice's."""
    object: Literal["chat.completion"] = "chat.completion"


class ChatAnswer:
    """See `answers.Answer`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._no_usage = None if job.include_usage else UNSET

    def chunk(self, told: Told) -> bytes:
        event = told.event
        delta = Delta(
            role="assistant" if event.first else UNSET,
            content=event.text if event.text or event.first else UNSET,
        )
        scores = self._logprobs(event.logprobs)
        choice = ChunkChoice(told.choice, delta, scores, event.finish_reason, event.stop_reason)
        return self._chunk([choice], self._no_usage)

    def usage(self, usage: Usage) -> bytes:
        return self._chunk([], wire_usage(usage))

    def body(self, told: list[Told], usage: Usage) -> bytes:
        job = self._job
        told_whole = whole(told, len(job.submits))
        prompt = prompt_scores(job, 0, told_whole[0].prompt)
        choices = [
            Choice(
                at,
                Spoken(all_.text),
                self._logprobs(all_.logprobs),
                all_.finish_reason,
                all_.stop_reason,
            )
            for at, all_ in enumerate(told_whole)
        ]
        return encode(Chat(job.id, job.created, job.model, choices, wire_usage(usage), prompt))

    def _chunk(self, choices: list[ChunkChoice], usage: WireUsage | UnsetType | None) -> bytes:
        job = self._job
        return encode(Chunk(job.id, job.created, job.model, choices, usage))

    def _logprobs(self, scored: tuple[Logprob, ...]) -> Logprobs | None:
        if not scored:
            return None
        return Logprobs(
            [
                TokenScore(
                    *self._score(one.id, one.scores.chosen),
                    [Score(*self._score(id, value)) for id, value in one.scores.top],
                )
                for one in scored
            ]
        )

    def _score(self, id: int, logprob: float) -> tuple[str, float, list[int]]:
        tokenizer = self._job.rules.tokenizer
        return spelt(tokenizer, id), finite(logprob), list(tokenizer.piece(id))
