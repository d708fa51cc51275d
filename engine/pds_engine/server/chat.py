"""The answers of /v1/chat/completions."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from pds_engine.server.answers import (
    Frame,
    PromptScores,
    WireUsage,
    encode,
    finite,
    joined,
    plain,
    prompt_scores,
    spelt,
    wire_usage,
)
from pds_engine.server.job import Job
from pds_engine.server.session import ChoiceEvent, Usage
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


class ChatLogprobs(Struct, frozen=True):
    content: list[TokenScore]


class Delta(Struct, frozen=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(Struct, frozen=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None


class ChatChunk(Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: WireUsage | UnsetType | None = UNSET
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class Spoken(Struct, frozen=True):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(Struct, frozen=True):
    index: int
    message: Spoken
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None


class ChatCompletion(Struct, frozen=True):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: WireUsage
    prompt_logprobs: PromptScores | UnsetType = UNSET
    """All choices have one prompt, and these are its first choice's."""
    object: Literal["chat.completion"] = "chat.completion"


class ChatFormat:
    """See `answers.AnswerFormat`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._no_usage = None if job.include_usage else UNSET
        self._frames: dict[int, Frame] = {}
        """Of each choice's plain chunks."""

    def chunk(self, one: ChoiceEvent) -> bytes:
        event = one.event
        if event.text and plain(event):
            return (self._frames.get(one.choice) or self._frame(one.choice)).around(event.text)
        delta = Delta(
            role="assistant" if event.first else UNSET,
            content=event.text if event.text or event.first else UNSET,
        )
        scores = self._logprobs(event.logprobs)
        choice = ChatChunkChoice(one.choice, delta, scores, event.finish_reason, event.stop_reason)
        return self._chunk([choice], self._no_usage)

    def _frame(self, at: int) -> Frame:
        choice = ChatChunkChoice(at, Delta(content=""), None, None, None)
        frame = Frame(self._chunk([choice], self._no_usage), b"content")
        self._frames[at] = frame
        return frame

    def usage(self, usage: Usage) -> bytes:
        return self._chunk([], wire_usage(usage))

    def body(self, events: list[ChoiceEvent], usage: Usage) -> bytes:
        job = self._job
        all_choices = joined(events, len(job.submits))
        prompt = prompt_scores(job, 0, all_choices[0].prompt)
        choices = [
            ChatChoice(
                at,
                Spoken(whole.text),
                self._logprobs(whole.logprobs),
                whole.finish_reason,
                whole.stop_reason,
            )
            for at, whole in enumerate(all_choices)
        ]
        return encode(
            ChatCompletion(job.id, job.created, job.model, choices, wire_usage(usage), prompt)
        )

    def _chunk(self, choices: list[ChatChunkChoice], usage: WireUsage | UnsetType | None) -> bytes:
        job = self._job
        return encode(ChatChunk(job.id, job.created, job.model, choices, usage))

    def _logprobs(self, scored: tuple[Logprob, ...]) -> ChatLogprobs | None:
        if not scored:
            return None
        return ChatLogprobs(
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
