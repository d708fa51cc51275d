"""The progress of one request's choices: tokens in, events out (pure; router.md)."""

from dataclasses import dataclass

from msgspec import Struct, structs

from pds_engine.errors import ProtocolError
from pds_engine.messages import Token
from pds_engine.server.job import Job
from pds_engine.text.emit import Event, TextState, emit, finish


class ChoiceEvent(Struct, frozen=True):
    """An event of one choice."""

    choice: int
    event: Event
    last: bool = False
    """It is an event of the choice's last token: only the end of the answer follows."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class Session:
    """The state of all choices of a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._states = [_replay(job, submit.output_ids) for submit in job.submits]
        self._cached = [0] * len(job.submits)
        self._open = set(range(len(job.submits)))

    @property
    def done(self) -> bool:
        return not self._open

    def is_open(self, choice: int) -> bool:
        return choice in self._open

    def usage(self) -> Usage:
        """Tokens so far. Cached ones are counted once for each prompt, like the prompt's own."""
        return Usage(
            self.job.prompt_tokens,
            sum(state.count for state in self._states),
            sum(self._cached[:: self.job.copies]),
        )

    def feed(self, choice: int, token: Token) -> tuple[list[ChoiceEvent], bool]:
        """Take a token in.

        Returns:
            The events to send, and whether the scheduler must cancel this choice (a stop string
            ended it, which the scheduler cannot see).

        Raises:
            ProtocolError: it is not the next token.
        """
        if choice not in self._open:
            return [], False
        state = self._states[choice]
        if token.index != state.count:
            raise ProtocolError(
                f"{token.request_id}: token {token.index} came where {state.count} was expected"
            )
        after, events = emit(state, token.token, token.logprobs, token.prompt_logprobs)
        self._states[choice] = after
        if token.index == len(self.job.submits[choice].output_ids):
            self._cached[choice] = token.cached_tokens
        reason = "stop" if after.stopped is not None else token.finish_reason
        last = reason is not None
        due: list[ChoiceEvent] = []
        if events and token.index >= self.job.replayed:
            due = [ChoiceEvent(choice, event, last) for event in events]
        if not (last or self.job.first_only):
            return due, False
        self._open.discard(choice)
        if reason is None or self.job.first_only:
            return due, False
        due.append(ChoiceEvent(choice, finish(after, reason, self.job.eos_ids), last))
        return due, token.finish_reason is None


def _replay(job: Job, output_ids: tuple[int, ...]) -> TextState:
    """The state behind these tokens, which the client has: the journal names them all."""
    state = TextState(job.rules)
    for id in output_ids:
        state, _ = emit(state, id)
    return structs.replace(state, pending=None)
