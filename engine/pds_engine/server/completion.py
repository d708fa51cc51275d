"""The answers of /v1/completions."""

from typing import Literal

from msgspec import UNSET, Struct, UnsetType

from pds_engine.messages import TokenLogprobs
from pds_engine.server.answers import (
    Frame,
    PromptScores,
    WireUsage,
    encode,
    finite,
    joined,
    plain,
    prompt_scores,
    scored_prompt,
    spelt,
    wire_usage,
)
from pds_engine.server.job import Job
from pds_engine.server.session import ChoiceEvent, Usage
from pds_engine.text import detokenizer
from pds_engine.text.emit import Logprob

_Entry = tuple[int, int, TokenLogprobs | None]
"""A token, how many characters go before it, and its scores."""


class CompletionLogprobs(Struct, frozen=True):
    """Parallel lists, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Struct, frozen=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: str | int | None
    prompt_logprobs: PromptScores | UnsetType = UNSET


class Completion(Struct, frozen=True):
    """A chunk of a stream, and a whole answer: OpenAI gives both the same shape."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: WireUsage | UnsetType | None = UNSET
    object: Literal["text_completion"] = "text_completion"


class CompletionFormat:
    """See `answers.AnswerFormat`."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._no_usage = None if job.include_usage else UNSET
        self._frames: dict[int, Frame] = {}
        """Of each choice's plain chunks."""

    def chunk(self, one: ChoiceEvent) -> bytes:
        event = one.event
        if plain(event):
            return (self._frames.get(one.choice) or self._frame(one.choice)).around(event.text)
        text = self._echo(one.choice) + event.text if event.first else event.text
        prompt = event.prompt if event.first else None
        scores = self._logprobs(one.choice, event.logprobs, prompt)
        choice = CompletionChoice(one.choice, text, scores, event.finish_reason, event.stop_reason)
        return self._completion([choice], self._no_usage)

    def _frame(self, at: int) -> Frame:
        choice = CompletionChoice(at, "", None, None, None)
        frame = Frame(self._completion([choice], self._no_usage), b"text")
        self._frames[at] = frame
        return frame

    def usage(self, usage: Usage) -> bytes:
        return self._completion([], wire_usage(usage))

    def body(self, events: list[ChoiceEvent], usage: Usage) -> bytes:
        choices = [
            CompletionChoice(
                at,
                self._echo(at) + whole.text,
                self._logprobs(at, whole.logprobs, whole.prompt),
                whole.finish_reason,
                whole.stop_reason,
                prompt_scores(self._job, at, whole.prompt),
            )
            for at, whole in enumerate(joined(events, len(self._job.submits)))
        ]
        return self._completion(choices, wire_usage(usage))

    def _completion(
        self, choices: list[CompletionChoice], usage: WireUsage | UnsetType | None
    ) -> bytes:
        job = self._job
        return encode(Completion(job.id, job.created, job.model, choices, usage))

    def _echo(self, choice: int) -> str:
        return self._job.echoes[choice] if self._job.echoes else ""

    def _logprobs(
        self,
        choice: int,
        scored: tuple[Logprob, ...],
        prompt: tuple[TokenLogprobs, ...] | None,
    ) -> CompletionLogprobs | None:
        """`prompt` goes before the output's where it is echoed; None: an event before had it."""
        echoed = [] if prompt is None else self._prompt(choice, prompt)
        before = len(self._echo(choice))
        entries = [*echoed, *((one.id, before + one.offset, one.scores) for one in scored)]
        if not entries:
            return None
        tokenizer = self._job.rules.tokenizer
        return CompletionLogprobs(
            [spelt(tokenizer, id) for id, _, _ in entries],
            [None if scores is None else finite(scores.chosen) for _, _, scores in entries],
            [
                None
                if scores is None
                else {spelt(tokenizer, id): finite(value) for id, value in scores.top}
                for _, _, scores in entries
            ],
            [offset for _, offset, _ in entries],
        )

    def _prompt(self, choice: int, prompt: tuple[TokenLogprobs, ...]) -> list[_Entry]:
        """The echoed tokens, when scores are asked for: the first one follows nothing."""
        count = self._job.submits[choice].sampling.logprobs
        if not self._job.echoes or count is None:
            return []
        rules, entries, offset, partial = self._job.rules, list[_Entry](), 0, b""
        for id, one in scored_prompt(self._job, choice, prompt):
            trimmed = None if one is None else TokenLogprobs(one.chosen, one.top[:count])
            entries.append((id, offset, trimmed))
            hidden = id in rules.tokenizer.special_ids
            piece = b"" if hidden else rules.tokenizer.piece(id)
            text, partial = detokenizer.advance(partial, piece)
            offset += len(text)
        return entries
