"""`spec.engine`: the settings of the engine itself, for all roles or for one."""

from typing import Annotated, Literal

from pydantic import Field

from pds_operator.schema.fields import Dtype, SpecModel, rule, rules, with_rules


class PipelineSpec(SpecModel):
    skip_output: bool | None = None


class DelayerSpec(SpecModel):
    """When prompts of dp ranks wait for each other."""

    # The API server compares 0, a whole number, with a minimum that it has rounded down.
    model_config = with_rules(
        rule("!has(self.maxSeconds) || self.maxSeconds > 0.0", "maxSeconds must be above 0")
    )
    enabled: bool | None = None
    """Default: where dp is above 1, on unified and prefill."""
    max_ticks: Annotated[int, Field(ge=1, le=10000)] | None = None
    """Passes in a row that prompts wait for, at most."""
    rest_ticks: Annotated[int, Field(ge=0, le=10000)] | None = None
    """Passes without prompts after each one with some."""
    align: Annotated[float, Field(ge=0, le=1000)] | None = None
    """How long prompts wait for those of other ranks, in the time that their own tokens take."""
    low_watermark: Annotated[float, Field(ge=0, le=1)] | None = None
    """A rank that uses less of its pages and slots waits for no fuller batch."""
    max_seconds: Annotated[float, Field(ge=0, le=86400)] | None = None
    """A prompt that has had a slot for so long waits no more."""


class DpSpec(SpecModel):
    sync_device: Literal["host", "device"] | None = None
    """Where dp ranks tell each other of each pass. Without asyncScheduling: always device."""
    gather: Literal["rows", "none"] | None = None
    """none: they tell each other nothing, and every step has room for maxRunning rows of each; for
    captured graphs of decode steps, role decode only."""


class EngineSpec(SpecModel):
    """What all roles of the engine share; a role's own `engine` overrides it key by key."""

    model_config = with_rules(
        rules(
            (
                "!has(self.chunkSize) || !has(self.pageSize) || self.chunkSize >= self.pageSize",
                "chunkSize must hold at least one page (pageSize)",
            ),
            # As DelayerSpec's: the API server takes 0 for 0.01
            (
                "!has(self.kvMemoryFraction) || self.kvMemoryFraction >= 0.01",
                "kvMemoryFraction must be at least 0.01",
            ),
        )
    )
    max_model_len: Annotated[int, Field(ge=2, le=16777216)] | None = None
    page_size: Annotated[int, Field(ge=1, le=256)] | None = None
    kv_dtype: Dtype | None = None
    kv_pages: Annotated[int, Field(ge=2, le=1000000000)] | None = None
    kv_memory_bytes: Annotated[int, Field(ge=1048576)] | None = None
    kv_memory_fraction: Annotated[float, Field(ge=0.01, le=1)] | None = None
    """What weights, a step and pages may take of a GPU, or of a pod's memory limit without GPUs,
    where neither kvPages nor kvMemoryBytes is given."""
    kv_backends: (
        Annotated[list[Literal["nixl", "tcp", "shm"]], Field(min_length=1, max_length=3)] | None
    ) = None
    """What a group offers for the hand-over; a pair takes the best that both offer."""
    chunk_size: Annotated[int, Field(ge=1, le=1048576)] | None = None
    chunked_prefill: Literal["mixed", "separate"] | None = None
    """A step holds chunks beside running requests, or the two kinds take turns."""
    dynamic_chunks: bool | None = None
    """Late chunks of a prompt are shorter, so that each takes as long as a first one."""
    preemption: Literal["recompute", "none"] | None = None
    max_running: Annotated[int, Field(ge=1, le=4096)] | None = None
    max_waiting: Annotated[int, Field(ge=0, le=1000000)] | None = None
    prefix_cache: bool | None = None
    async_scheduling: bool | None = None
    """Plan steps before those in flight are done. Default: true."""
    step_timeout_seconds: Annotated[int, Field(ge=1, le=86400)] | None = None
    join_timeout_seconds: Annotated[int, Field(ge=1, le=86400)] | None = None
    request_timeout_seconds: Annotated[int, Field(ge=1, le=86400)] | None = None
    pipeline: PipelineSpec | None = None
    delayer: DelayerSpec | None = None
    dp: DpSpec | None = None
    device: Literal["auto", "cpu", "cuda"] | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    compile: bool | None = None
    """Run compiled kernels; default: whether compileCache.warmup is enabled."""
    cuda_graphs: bool | None = None
    """On GPUs, replay decode steps as CUDA graphs. Default: true."""
    log_level: Literal["debug", "info", "warning", "error"] | None = None
