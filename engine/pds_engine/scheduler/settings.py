"""What of the configuration the scheduler decides by."""

from dataclasses import dataclass
from typing import Self

from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.messages import Role


@dataclass(frozen=True, slots=True)
class Settings:
    """Bounds of one scheduler; sizes in tokens unless named otherwise, times in seconds."""

    role: Role = "unified"
    pp: int = 1
    tp: int = 1
    page_size: int = 16
    max_model_len: int = 4096
    max_running: int = 64
    max_waiting: int = 256
    chunk_size: int = 512
    max_step_tokens: int = 576
    separate: bool = False
    """A step holds slices of prompts or running requests, not both."""
    dynamic_chunks: bool = False
    preemption: bool = True
    skip_output: bool = True
    prefix_cache: bool = True
    async_scheduling: bool = True
    lease: float = 30.0
    step_timeout: float = 60.0
    join_timeout: float = 300.0

    @property
    def ranks(self) -> int:
        """Worker ranks of this scheduler's replica."""
        return self.pp * self.tp

    @property
    def depth(self) -> int:
        """Steps in flight at most: one a stage computes, and one that waits for the first stage.

        Without async_scheduling a step is planned when the one before is done.
        """
        return self.pp + 1 if self.async_scheduling else 1

    @property
    def recompute(self) -> bool:
        """Running requests may be put back to the queue, and are computed anew."""
        return self.preemption and self.role == "unified"

    def elastic(self, resumable: bool) -> bool:
        """Whether a request is taken up before the pages of its full growth are there.

        It may then be put back (role=unified), or put out where somebody goes on with it
        (role=decode: nothing is computed anew). On role=prefill nothing grows while it runs.
        """
        return self.preemption and (self.role == "unified" or (self.role == "decode" and resumable))

    def pages_for(self, tokens: int) -> int:
        """Pages that hold `tokens` tokens."""
        return -(-tokens // self.page_size)

    @classmethod
    def of(cls, config: EngineConfig) -> Self:
        """The scheduler's part of `config`.

        Raises:
            ConfigError: bounds under which some prompt could never make progress.
        """
        bounds, page = config.scheduler, config.kv.page_size
        if bounds.chunk_size < page:
            raise ConfigError(
                f"scheduler.chunk_size {bounds.chunk_size} is less than a page of {page} tokens",
                hint="a middle chunk is whole pages: raise it to kv.page_size or more",
            )
        step = bounds.max_step_tokens or bounds.chunk_size + bounds.max_running
        if step < bounds.max_running + page:
            raise ConfigError(
                f"scheduler.max_step_tokens {step} leaves no page to a prompt beside "
                f"{bounds.max_running} running requests",
                hint=f"raise it to {bounds.max_running + page} or more, or lower max_running",
            )
        return cls(
            role=config.role,
            pp=config.parallelism.pp,
            tp=config.parallelism.tp,
            page_size=page,
            max_model_len=config.max_model_len,
            max_running=bounds.max_running,
            max_waiting=bounds.max_waiting,
            chunk_size=bounds.chunk_size,
            max_step_tokens=step,
            separate=bounds.chunked_prefill == "separate",
            dynamic_chunks=bounds.dynamic_chunks,
            preemption=bounds.preemption == "recompute",
            skip_output=config.pipeline.skip_output,
            prefix_cache=bounds.prefix_cache,
            async_scheduling=bounds.async_scheduling,
            lease=config.kv.lease_seconds,
            step_timeout=bounds.step_timeout,
            join_timeout=config.join_timeout,
        )
