"""How many KV pages a memory holds beside what else the ranks keep in it. Pure: no torch.

A share of the memory, `kv.memory_fraction`, is for weights, the largest step and pages. A GPU is
one rank's alone; the memory of a pod without GPUs is shared by all its ranks. All ranks of a group
have as many pages as the memory that holds the fewest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.parallel.layout import ModelPart
from pds_engine.sizing import human, needed, usable
from pds_engine.spec import DecoderSpec

OF_A_GPU, OF_A_CONTAINER = 0.9, 0.5
_PENALTY_BYTES = 5
"""Of a token of the vocabulary, for each slot: whether the prompt has it, and a count
(runner.tables)."""
_SERVERS = 112 << 20
"""Of a pod: launch, the API server and the scheduler, beside its ranks (103 MiB were seen)."""
_MOST = 0.95
"""No message asks for a greater share of a memory than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one rank takes of a memory, in bytes. What is not known yet is 0."""

    rank: str
    """Its name in messages."""
    holder: str
    """Names the memory: claims of one holder share it."""
    total: int
    """Bytes of the memory."""
    source: str
    """What sets them, in words."""
    others: int = 0
    """Used by others than the ranks that claim."""
    base: int = 0
    """Of a container: what the rank's process held before it loaded anything. No part that is asked
    for may reach into this and what the pod's other processes hold."""
    weights: int
    step: int = 0
    """The most that a step takes for a while, beside weights and pages."""
    tables: int = 0
    """Of penalties, made when the first request asks for them."""
    page_bytes: int

    @property
    def fixed(self) -> int:
        """All but pages."""
        return self.weights + self.step + self.tables

    def line(self, share: float, pages: int) -> str:
        """What took what, for the log."""
        parts = {
            "weights": self.weights,
            "a step": self.step,
            "penalties": self.tables,
            "used by others": self.others,
            f"{pages} KV pages": (pages + 1) * self.page_bytes,
        }
        taken = ", ".join(f"{name} {human(count)}" for name, count in parts.items() if count)
        return (
            f"memory of {self.rank}: {share:g} of {human(self.total)} ({self.source}) is "
            f"{human(round(share * self.total))}: {taken}"
        )


def share(config: EngineConfig, *, gpu: bool) -> float:
    """The part of the memory that weights, a step and pages may take together."""
    given = config.kv.memory_fraction
    return (OF_A_GPU if gpu else OF_A_CONTAINER) if given is None else given


def penalties(config: EngineConfig, spec: DecoderSpec, mine: ModelPart) -> int:
    """Bytes of the tables of penalties of the rank with this part."""
    return mine.samples * config.scheduler.max_running * spec.vocab * _PENALTY_BYTES


def pages(config: EngineConfig, spec: DecoderSpec, claims: Sequence[Claim], part: float) -> int:
    """The pages that requests may have on every one of these ranks: what `part` of their memories
    holds, and no more than can be of use.

    Raises:
        ConfigError: they do not hold what one request of max_model_len holds at once.
    """
    least, found = needed(config, spec), usable(config, spec)
    for sharing in _by_holder(claims):
        held = _room(sharing, part) // sum(each.page_bytes for each in sharing) - 1
        if held < least:
            raise _too_little(config, sharing, part, least)
        found = min(found, held)
    return found


def _by_holder(claims: Iterable[Claim]) -> list[list[Claim]]:
    found: dict[str, list[Claim]] = {}
    for each in claims:
        found.setdefault(each.holder, []).append(each)
    return list(found.values())


def _total(sharing: Sequence[Claim]) -> int:
    """Without a limit a rank takes what it finds free, so that the first one knows best."""
    return max(each.total for each in sharing)


def _base(sharing: Sequence[Claim]) -> int:
    """What the processes hold, whatever they serve."""
    held = sum(each.base for each in sharing)
    return held + _SERVERS if held else 0


def _room(sharing: Sequence[Claim], part: float) -> int:
    total, others = _total(sharing), max(each.others for each in sharing)
    fixed = sum(each.fixed for each in sharing)
    return max(0, min(int(part * total) - others, total - _base(sharing)) - fixed)


def _too_little(
    config: EngineConfig, sharing: Sequence[Claim], part: float, least: int
) -> ConfigError:
    first, *more = sharing
    total, others = _total(sharing), max(each.others for each in sharing)
    one = (least + 1) * sum(each.page_bytes for each in sharing)
    takes = {
        "weights": sum(each.weights for each in sharing),
        "a step": sum(each.step for each in sharing),
        "penalties": sum(each.tables for each in sharing),
    }
    names = f"{first.rank} and {len(more)} more take" if more else f"{first.rank} takes"
    said = ", ".join(f"{human(count)} for {name}" for name, count in takes.items() if count)
    said += f"; {human(others)} are used by others" if others else ""
    base = _base(sharing)
    said += f"; {human(base)} are the processes' own" if base else ""
    want = sum(each.fixed for each in sharing) + one + others
    if want <= min(_MOST * total, total - base):
        cure = f"raise kv.memory_fraction to {_rounded_up(want / total):g}"
    else:
        enough = max(round(want / min(part, _MOST)), want + base)
        cure = f"give it {human(enough)} of memory, or more ranks (tp, pp)"
    return ConfigError(
        f"kv.memory_fraction: {part:g} of {human(total)} ({first.source}) is "
        f"{human(int(part * total))}, of which {names} {said}; one request of max_model_len "
        f"{config.max_model_len} needs {human(one)} of KV pages",
        hint=f"{cure}, or lower max_model_len, scheduler.max_running or scheduler.chunk_size",
    )


def _rounded_up(fraction: float) -> float:
    """To hundredths."""
    return -(-fraction * 100 // 1) / 100
