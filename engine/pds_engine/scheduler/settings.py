"""The configuration as the scheduler reads it, and what follows from it."""

from typing import Self

from pydantic import Field

from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError


class Settings(EngineConfig):
    """A configuration, with the bounds that the scheduler derives from it.

    What can be set is a field of EngineConfig or a section of it. The model's window is beside it.
    """

    window: int | None = Field(None, ge=2)
    """Tokens that a token sees, itself included, if every layer of the model has such a sliding
    window; None: all tokens before it."""

    @property
    def ranks(self) -> int:
        """Worker ranks of this scheduler's replica."""
        return self.parallelism.pp * self.parallelism.tp

    @property
    def depth(self) -> int:
        """Steps in flight at most: one a stage computes, and one that waits for the first stage.

        Without async_scheduling a step is planned when the one before is done.
        """
        return self.parallelism.pp + 1 if self.scheduler.async_scheduling else 1

    @property
    def step_tokens(self) -> int:
        """Tokens of all rows in one step, at most."""
        bounds = self.scheduler
        return bounds.max_step_tokens or bounds.chunk_size + bounds.max_running

    @property
    def separate(self) -> bool:
        """A step holds slices of prompts or running requests, not both."""
        return self.scheduler.chunked_prefill == "separate"

    @property
    def recompute(self) -> bool:
        """Running requests may be preempted, wait in the queue, and are computed anew."""
        return self.scheduler.preemption == "recompute" and self.role == "unified"

    def elastic(self, resumable: bool) -> bool:
        """Whether a request is admitted before the pages of its full growth are there.

        It may then be preempted: on role=unified it is computed anew, on role=decode it migrates,
        if somebody goes on with it. On role=prefill nothing grows while it runs.
        """
        if self.role == "decode":
            return self.scheduler.preemption == "recompute" and resumable
        return self.recompute

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.kv.page_size)

    def behind(self, position: int) -> int:
        """First pages, so many, that no row reads which begins at `position` or later."""
        if self.window is None:
            return 0
        return max(position + 1 - self.window, 0) // self.kv.page_size

    def first_page(self, known: int) -> int:
        """The first page that a request with `known` tokens needs when it is admitted.

        On role=decode their keys come from a prefill group, and only those that are read.
        """
        return self.behind(known) if self.role == "decode" else 0

    def at_once(self, pages: int) -> int:
        """Of `pages` pages that a request fills in its life, those that it holds at once, at most.

        Behind a window they are given back when the step that last read them is done. So it holds
        those of the window before the oldest step in flight, and of what the steps in flight
        compute: `n` tokens, which lie in at most ⌈(n + page_size - 1) / page_size⌉ pages.
        """
        if self.window is None:
            return pages
        step = 1 if self.role == "decode" else self.scheduler.chunk_size
        tokens = self.window - 1 + self.depth * step
        return min(pages, self.pages_for(tokens + self.kv.page_size - 1))

    @classmethod
    def of(cls, config: EngineConfig, window: int | None = None) -> Self:
        """`config`, read by a scheduler.

        Args:
            window: the model's (spec.DecoderSpec). One that no context leaves changes nothing. One
                of a single token counts as two, so that every hand-over has a page.

        Raises:
            ConfigError: bounds under which some prompt could never make progress.
        """
        if window is not None:
            window = max(window, 2) if window < config.max_model_len else None
        settings = cls(**dict(config), window=window)
        bounds, page = settings.scheduler, settings.kv.page_size
        if bounds.chunk_size < page:
            raise ConfigError(
                f"scheduler.chunk_size {bounds.chunk_size} is less than a page of {page} tokens",
                hint="a middle chunk is whole pages: raise it to kv.page_size or more",
            )
        if settings.step_tokens < bounds.max_running + page:
            raise ConfigError(
                f"scheduler.max_step_tokens {settings.step_tokens} leaves no page to a prompt "
                f"beside {bounds.max_running} running requests",
                hint=f"raise it to {bounds.max_running + page} or more, or lower max_running",
            )
        return settings
