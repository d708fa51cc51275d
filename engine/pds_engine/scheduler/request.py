"""A request as the scheduler knows it. Its phase is the ledger's to change (lifecycle.py)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from pds_engine.messages import Sampling, Submit, TokenLogprobs
from pds_engine.scheduler.party import Party
from pds_engine.scheduler.settings import Settings


class Phase(Enum):
    """Where a live request is."""

    WAITING = auto()
    """In the queue, or on role=prefill without its offer: holds nothing."""
    OFFERED = auto()
    """On role=decode: holds a slot and pages that P fills."""
    PREFILLING = auto()
    DECODING = auto()
    PREEMPTED = auto()
    """Waits for the last step that names it, then in the queue: to be computed anew."""
    ENDED = auto()
    """Its results are discarded; what it holds returns when nothing refers to it."""


@dataclass(slots=True, eq=False)
class Request:
    """Mutable state of one request; two are equal only if they are one.

    Positions 0 … computed-1 have their keys and values in a step that was issued. `planned` counts
    output tokens known or being computed, so that prompt_len + planned positions have a token, or
    will; a row that reaches the last of them samples output number `planned`.
    """

    submit: Submit
    server: Party
    arrival: int
    """Its place in the order of arrival."""
    arrived: float
    outputs: list[int] = field(init=False)
    given: int = field(init=False)
    """Output tokens that were known when it was admitted: computed like the prompt's."""
    planned: int = field(init=False)
    computed: int = 0
    cached: int = 0
    """Prompt tokens that came from a prefix cache when it was first admitted."""
    chain: list[bytes] = field(default_factory=list)
    """Digests of its full pages, as far as they were needed (prefix.lengthen)."""
    shared: int = 0
    """Its first pages, so many, came from the prefix cache: not written here, nor by a peer."""
    entered: int = 0
    """Its first pages, so many, were offered to the prefix cache, or came from it."""
    phase: Phase = Phase.WAITING
    slot: int = -1
    gen: int = -1
    pages: list[int] = field(default_factory=list)
    """The last of its first `covered` pages: all of them, or those that its window has not left."""
    covered: int = 0
    """Its first pages, so many, it holds or does not need any more."""
    goal: int = 0
    """Its first pages, so many, were to be there when it was admitted, or promised."""
    promised: int = 0
    """Pages set aside for its growth."""
    most: int = 0
    """The most pages that it will hold here at once, if it is admitted before they are there."""
    last_step: int = -1
    """The last issued step that names it."""
    last_sample: int = -1
    """The last issued step that samples for it."""
    on_workers: bool = False
    """Its Admit was sent, and no Release since."""
    transferring: bool = False
    """On role=prefill: workers may still read its pages to push them."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    """Of the prompt's second token and those after it, until they go with the first output."""
    prompt_len: int = field(init=False)
    max_tokens: int = field(init=False)
    since: float = field(init=False)
    """When its client asked; no later than it arrived, whatever the router's clock says."""

    def __post_init__(self) -> None:
        self.outputs = list(self.submit.output_ids)
        self.given = self.planned = len(self.outputs)
        self.prompt_len = len(self.submit.prompt_ids)
        self.max_tokens = self.submit.sampling.max_tokens
        asked = self.submit.since
        self.since = self.arrived if asked is None else min(asked, self.arrived)

    @property
    def id(self) -> str:
        return self.submit.request_id

    @property
    def sampling(self) -> Sampling:
        return self.submit.sampling

    def scores(self, start: int) -> bool:
        """Whether log-probabilities of its prompt come of a row that begins at `start`."""
        wanted = self.sampling.prompt_logprobs is not None and not self.outputs
        return wanted and start + 1 < self.prompt_len

    def keep_prompt_logprobs(self, start: int, found: Sequence[TokenLogprobs]) -> None:
        """Those of a row that began at `start`. They overwrite: a prompt that is computed again has
        the same ones again."""
        self.prompt_logprobs[start : start + len(found)] = found

    def take_prompt_logprobs(self) -> tuple[TokenLogprobs, ...]:
        """All that have come; they are sent once."""
        if not self.prompt_logprobs:
            return ()
        taken, self.prompt_logprobs = tuple(self.prompt_logprobs), []
        return taken

    @property
    def rank(self) -> tuple[int, float, int]:
        """Its place in the order of service: by priority, then first come first served.

        A request that migrated brings its age along, so it goes before those that came meanwhile.
        """
        return self.submit.priority, self.since, self.arrival

    @property
    def context(self) -> tuple[int, ...]:
        """The tokens known when it was admitted: its prompt, and what was generated before."""
        return self.submit.prompt_ids + tuple(self.outputs[: self.given])

    @property
    def context_len(self) -> int:
        return self.prompt_len + self.given

    @property
    def dropped(self) -> int:
        """Its first pages, so many, lie behind its window: it holds them no more, or never did."""
        return self.covered - len(self.pages)

    def restart(self) -> None:
        """All its known tokens are to be computed anew."""
        self.given = self.planned = len(self.outputs)
        self.computed = 0

    def known(self, start: int, end: int) -> tuple[int, ...]:
        """Its tokens start … end-1 of prompt and output, whose ids are known."""
        first, last = max(start - self.prompt_len, 0), max(end - self.prompt_len, 0)
        return self.submit.prompt_ids[start:end] + tuple(self.outputs[first:last])


def wanted(submit: Submit, settings: Settings, given: int | None = None) -> int:
    """Pages that are set aside for a request when it is admitted.

    On role=decode that of the first token's keys is among them, which comes with the others.

    Args:
        given: output tokens that are known by then; None: those that it came with.
    """
    known = len(submit.prompt_ids) + (len(submit.output_ids) if given is None else given)
    return settings.at_once(goal(submit, settings, known) - settings.first_page(known))


def goal(submit: Submit, settings: Settings, known: int) -> int:
    """The first pages of a request with `known` tokens, so many, for which it waits until it is
    admitted. Later ones it has to find as it grows."""
    if settings.recompute:
        return settings.pages_for(known)
    most = growth(submit, settings)
    if not settings.elastic(submit.resumable):
        return most
    return min(settings.pages_for(known + 1), most)


def growth(submit: Submit, settings: Settings) -> int:
    """Pages that a request will ever fill here. The last output token's keys are not computed."""
    prompt, given = len(submit.prompt_ids), len(submit.output_ids)
    if settings.role == "prefill":
        return settings.pages_for(prompt + given)
    return settings.pages_for(max(prompt + given, prompt + submit.sampling.max_tokens - 1))
