"""The answers of /v1/completions."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from pds_engine.server.answers import WireUsage, encode, finite, whole, wire_usage
from pds_engine.server.job import Job
from pds_engine.server.session import Told, Usage
from pds_engine.text.emit import Logprob
from pds_engine.text.tokenizer import Tokenizer


class Logprobs(Struct, frozen=True):
    """Parallel lists, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Choice(Struct, frozen=True):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: str | None
    stop_reason: str | int | None


class Completion(Struct, frozen=True):
    """A chunk of a stream, and a whole answer: OpenAI gives both the same shape."""

    id: str
    created: int
    model: str
    choices: list[Choice]
    usage: WireUsage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class CompletionAnswer:
    """See `answers.Answer`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._no_usage = None if job.include_usage else UNSET

    def chunk(self, told: Told) -> bytes:
        event = told.event
        text = self._echo(told.choice) + event.text if event.first else event.text
        scores = self._logprobs(told.choice, event.logprobs)
        choice = Choice(told.choice, text, scores, event.finish_reason, event.stop_reason)
        return self._completion([choice], self._no_usage)

    def usage(self, usage: Usage) -> bytes:
        return self._completion([], wire_usage(usage))

    def body(self, told: list[Told], usage: Usage) -> bytes:
        choices = [
            Choice(
                at,
                self._echo(at) + all_.text,
                self._logprobs(at, all_.logprobs),
                all_.finish_reason,
                all_.stop_reason,
            )
            for at, all_ in enumerate(whole(told, len(self._job.submits)))
        ]
        return self._completion(choices, wire_usage(usage))

    def _completion(self, choices: list[Choice], usage: WireUsage | UnsetType | None) -> bytes:
        job = self._job
        return encode(Completion(job.id, job.created, job.model, choices, usage))

    def _echo(self, choice: int) -> str:
        return self._job.echoes[choice] if self._job.echoes else ""

    def _logprobs(self, choice: int, scored: tuple[Logprob, ...]) -> Logprobs | None:
        if not scored:
            return None
        tokenizer, before = self._job.rules.tokenizer, len(self._echo(choice))
        return Logprobs(
            [spelt(tokenizer, one.id) for one in scored],
            [finite(one.scores.chosen) for one in scored],
            [
                {spelt(tokenizer, id): finite(value) for id, value in one.scores.top}
                for one in scored
            ],
            [before + one.offset for one in scored],
        )


def spelt(tokenizer: Tokenizer, id: int) -> str:
    """A token as text; bytes that are no whole character become U+FFFD."""
    return tokenizer.piece(id).decode(errors="replace")
