"""The engine's configuration: one frozen model, from a file, PDS_* variables and flags on top.

An unknown key is an error that names the nearest known one. Nothing else reads the environment.
"""

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pds_engine.errors import ConfigError
from pds_engine.messages import Role

T = TypeVar("T", bound="Section")
Dtype = Literal["float32", "bfloat16", "float16"]
KvBackend = Literal["nixl", "tcp", "shm"]
"""What kv/transfer/registry.py has."""
MOST_RANKS = 1 << 19
"""Of a group: above what the CRD admits, and few enough to be planned and printed one by one."""


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(Section):
    name: str = "default"
    """What clients send as "model"; `load` takes the folder's name where none is given."""
    path: Path = Path("/models")
    """A folder of the Hugging Face layout: config.json, *.safetensors, tokenizer.json."""
    dtype: Dtype = "bfloat16"


class ParallelConfig(Section):
    pp: int = Field(1, ge=1)
    tp: int = Field(1, ge=1)
    dp: int = Field(1, ge=1)
    ranks_per_pod: int = Field(1, ge=1)
    ep: bool = False
    """Experts are split over all ranks of a stage, each whole; false: each by its columns."""
    layers: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Layers of each stage; None: so that the largest one multiplies with the fewest parameters."""

    @property
    def ranks(self) -> int:
        return self.pp * self.tp * self.dp

    @property
    def width(self) -> int:
        """Ranks of a stage: the attention groups of all dp ranks, side by side."""
        return self.tp * self.dp

    @model_validator(mode="after")
    def _ranks_can_be(self) -> Self:
        if self.ranks > MOST_RANKS:
            raise ValueError(
                f"pp·tp·dp = {self.ranks} is above the {MOST_RANKS} ranks that a group may have"
            )
        if self.ranks % self.ranks_per_pod:
            raise ValueError(
                f"ranks_per_pod {self.ranks_per_pod} does not divide pp·tp·dp = {self.ranks}: "
                f"choose a divisor; {self.ranks} has all ranks in one pod"
            )
        return self


class KvConfig(Section):
    dtype: Dtype | None = None
    """None: the model's."""
    page_size: int = Field(16, ge=1, le=256)
    pages: int | None = Field(None, ge=2)
    """None: as many as memory_bytes holds."""
    memory_bytes: int | None = Field(None, ge=1 << 20)
    """None: what memory_fraction leaves."""
    memory_fraction: float | None = Field(None, gt=0, le=1)
    """What weights, a step and pages may take of a GPU's memory, or all ranks of a pod of its
    container's, where neither pages nor memory_bytes says how many pages there are.
    None: 0.9 of a GPU, 0.5 of a container."""
    backends: tuple[KvBackend, ...] = ("nixl", "tcp")
    """What this group offers for the hand-over; a pair uses the best that both offer."""
    port_base: int = Field(8100, ge=0, le=65000)
    """The pod's rank i listens on port_base + i, its UCX on one of 8 ports from
    port_base + 100 + 8·i on; 0: any free port."""
    lease_seconds: float = Field(30.0, gt=0)
    """D frees the pages of an offer that P has not renewed for so long."""

    @property
    def sized(self) -> bool:
        """Whether it is said how many pages there are, so that memory_fraction says nothing."""
        return self.pages is not None or self.memory_bytes is not None


class SchedulerConfig(Section):
    max_running: int = Field(64, ge=1, le=4096)
    """Requests that hold a slot at once."""
    max_waiting: int = Field(256, ge=0)
    """Beyond it the server answers 429."""
    chunk_size: int = Field(512, ge=1)
    """Tokens of prompt in one step; with dynamic_chunks, in a prompt's first."""
    max_step_tokens: int | None = Field(None, ge=1)
    """Tokens of all rows in one step; None: chunk_size + max_running."""
    chunked_prefill: Literal["mixed", "separate"] = "mixed"
    """Whether a step holds chunks beside running requests, or the two take turns."""
    dynamic_chunks: bool = False
    """Make late chunks of a long prompt shorter, so that each takes as long as the first one."""
    preemption: Literal["recompute", "none"] = "recompute"
    """Admit requests before the pages of their full growth are free. When pages run out, preempt
    the last of them (role=unified), or let it migrate to another group (role=decode: streams that
    a router can resume). none: every request reserves the pages of its full growth."""
    prefix_cache: bool = True
    """Keep the pages of finished requests for later ones that begin with the same tokens."""
    step_timeout: float = Field(60.0, gt=0)
    async_scheduling: bool = True
    """Plan steps before those in flight are done; false for comparison."""


class PipelineConfig(Section):
    skip_output: bool = True


class DelayerConfig(Section):
    """When prompts of dp ranks wait for each other (docs/data-parallel.md)."""

    enabled: bool | None = None
    """None: where dp is above 1, on role=unified and role=prefill."""
    max_ticks: int = Field(30, ge=1)
    """Passes in a row that prompts wait for, at most; half of it while one is half done."""
    rest_ticks: int = Field(1, ge=0)
    """Passes without prompts after one with some that took long, unless the chunks are full."""
    align: float = Field(0.5, ge=0)
    """How long a prompt waits for those of other ranks where none queues for a slot: so many times
    what its own tokens take."""
    low_watermark: float = Field(0.2, ge=0, le=1)
    """A rank that uses less of its pages and slots waits for no fuller batch."""
    max_seconds: float = Field(5.0, gt=0)
    """A prompt that has had a slot for so long without being computed waits no more."""


class DpConfig(Section):
    sync_device: Literal["host", "device"] = "host"
    gather: Literal["rows", "none"] = "rows"
    """none: nothing is gathered, and every step has room for max_running rows of each dp rank, for
    captured graphs of decode steps; role=decode only."""


class CacheConfig(Section):
    path: Path | None = None
    """The compile cache's mount point; None: nothing is compiled ahead."""
    private: Path | None = None
    """Where this pod compiles, and keeps copies of what it runs, in case the volume fails.
    None: a folder of this user among the system's temporary files."""
    only_shared: bool = False
    """Compile only for other pods: nothing where the volume cannot store it."""
    warmup: bool = False
    """Refuse to be ready until the manifest of this role and stage is verified."""
    key_dir: Path | None = None
    """cache.key (hex), which seals the artefacts. None: hmac.key of http.keys_dir does, if any."""
    target: str = ""
    """The GPU that `pds-engine warmup` compiles for, as "sm_90"; "": this machine itself."""
    workers: int = Field(2, ge=1)
    timeout_seconds: float = Field(1800, gt=0)


class HttpConfig(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    metrics_port: int = Field(9090, ge=0, le=65535)
    control_port: int = Field(8001, ge=0, le=65535)
    """The scheduler of dp rank d listens on control_port + d; 0: any free port."""
    rendezvous_port: int = Field(8090, ge=0, le=65535)
    """Where rank 0 opens the store at which a group of several ranks meets; 0: any free port."""
    max_body_bytes: int = Field(8 << 20, ge=1024)
    max_held_bytes: int = Field(128 << 20, ge=1024)
    """Bytes of all bodies that are being read."""
    request_timeout: float | None = Field(None, gt=0, le=1e9)
    """Seconds that a request may take in all; then it ends with 504. None: any time."""
    keys_dir: Path | None = None
    """server.key, server.pub, client.key, client.pub (CURVE, z85) and hmac.key (hex).

    None: keys are made in a private folder, and internal headers are refused.
    """


class PodConfig(Section):
    """What differs between the pods of a group; in Kubernetes, the environment gives it."""

    group: str = "local"
    index: int = Field(0, ge=0)
    leader: str = "127.0.0.1"
    """Host name of the leader pod."""
    ip: str = "127.0.0.1"
    """The address peers reach this pod at."""
    name: str = "local"
    incarnation: str = ""
    revision: str = ""


class EngineConfig(Section):
    model: ModelConfig = ModelConfig()
    role: Role = "unified"
    max_model_len: int = Field(4096, ge=2)
    parallelism: ParallelConfig = ParallelConfig()
    kv: KvConfig = KvConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    pipeline: PipelineConfig = PipelineConfig()
    delayer: DelayerConfig = DelayerConfig()
    dp: DpConfig = DpConfig()
    cache: CacheConfig = CacheConfig()
    http: HttpConfig = HttpConfig()
    pod: PodConfig = PodConfig()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(1, ge=1)
    """Compute threads of a worker on CPU."""
    compile: bool = False
    """Run kernels that are compiled ahead instead of plain torch."""
    cuda_graphs: bool = True
    """On a GPU, replay decode steps as CUDA graphs, captured at start-up; false launches each
    kernel (vLLM: enforce_eager)."""
    join_timeout: float = Field(300, gt=0)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _only_decode_steps_are_alike(self) -> Self:
        if self.dp.gather == "none" and self.role != "decode":
            raise ValueError(
                f"dp.gather: none is for role decode, this is role {self.role}: set it in "
                "decode.engine, or leave it out"
            )
        if self.dp.gather == "none" and self.delayer.enabled:
            raise ValueError("delayer.enabled: the delayer has nothing to go by at dp.gather: none")
        return self

    @model_validator(mode="after")
    def _warm_means_compiled(self) -> Self:
        if self.cache.warmup and not (self.compile and self.cache.path):
            raise ValueError("cache.warmup needs compile: true and cache.path")
        if self.compile and not self.cache.path:
            raise ValueError("compile: true needs cache.path, the folder of the compile cache")
        return self

    @property
    def most_open(self) -> int:
        """Requests that the group has at once, at most: running on all dp ranks, and waiting."""
        bounds = self.scheduler
        return self.parallelism.dp * bounds.max_running + bounds.max_waiting


ENVIRONMENT: Mapping[str, str] = {
    "PDS_GROUP": "pod.group",
    "PDS_RANK_POD": "pod.index",
    "PDS_LEADER": "pod.leader",
    "PDS_POD_IP": "pod.ip",
    "PDS_POD_NAME": "pod.name",
    "PDS_INCARNATION": "pod.incarnation",
    "PDS_REVISION": "pod.revision",
    "PDS_CACHE_KEY_DIR": "cache.key_dir",
    "PDS_LOG_LEVEL": "log_level",
    "PDS_CACHE_ONLY_SHARED": "cache.only_shared",
    "PDS_CACHE_TARGET": "cache.target",
}
"""The variables that are read, and the key each one sets."""


def load(
    path: Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> EngineConfig:
    """The configuration of `path`, overlaid by PDS_* variables, overlaid by `flags`.

    `flags` maps dotted keys ("model.path") to values; None values are left out.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is out of range.
    """
    tree = read_tree(path) if path else {}
    variables = os.environ if environ is None else environ
    for name, key in ENVIRONMENT.items():
        if name in variables:
            _put(tree, key, variables[name])
    for key, value in (flags or {}).items():
        if value is not None:
            _put(tree, key, value)
    model = tree.get("model")
    if isinstance(model, dict) and isinstance(model.get("path"), str | Path):
        model.setdefault("name", Path(model["path"]).resolve().name)
    return parse(EngineConfig, tree)


def read_tree(path: Path) -> dict[str, Any]:
    """The mapping that a YAML or JSON file holds."""
    import yaml  # not for the processes of a group, which read JSON

    try:
        text = path.read_text()
        tree = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"the configuration {path} is not a mapping")
    return tree


def parse(kind: type[T], tree: Mapping[str, Any]) -> T:
    """`tree` as a `kind`.

    Raises:
        ConfigError: names the key, the value and, for an unknown key, the nearest known one.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the configuration"
        if first["type"] == "extra_forbidden":
            raise ConfigError(f"unknown key {key}", hint=_nearest(kind, key)) from error
        if first["type"] == "value_error":  # our own words, which name the values
            raise ConfigError(f"{key}: {first['ctx']['error']}") from error
        raise ConfigError(f"{key}: {first['msg']}, got {first['input']!r}") from error


def known_keys(kind: type[Section], prefix: str = "") -> Iterator[str]:
    """All dotted keys of a configuration model, sections before their members."""
    for name, field in kind.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from known_keys(field.annotation, f"{prefix}{name}.")


def _nearest(kind: type[Section], key: str) -> str:
    known = list(known_keys(kind))
    found = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(
        key.rpartition(".")[2], known, n=1
    )
    return f"did you mean {found[0]}?" if found else f"known keys: {', '.join(kind.model_fields)}"


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if tree.get(parent) is None:
            tree[parent] = {}
        tree = tree[parent]
        if not isinstance(tree, dict):
            raise ConfigError(
                f"{parent} is a section, got {tree!r}", hint=f"write its keys instead: {key}"
            )
    tree[last] = value
