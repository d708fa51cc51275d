"""Which steps a warm-up runs, so that all is compiled that serving will launch. Pure; no torch.

The numbers of tokens follow the number of multiprocessors of the GPU, as a GEMM's tiles do: one
token, one tile, an eighth and a quarter of the multiprocessors busy, and all of them (sglang
#26567: five counts in place of the 16,384 that were compiled before). Upstream aligns them to its
context-parallel size too; this engine has none.
"""

from dataclasses import dataclass
from typing import Literal

from pds_engine.config import EngineConfig
from pds_engine.messages import Role

Kind = Literal["decode", "extend"]
TILE = 64
"""Rows of the smallest tile of a GEMM."""


@dataclass(frozen=True, slots=True)
class WarmStep:
    """A step that is made up. decode: `tokens` requests of one token; extend: one chunk."""

    kind: Kind
    tokens: int


def token_counts(sms: int, tp: int = 1) -> tuple[int, ...]:
    """Numbers of tokens of a step on a GPU of `sms` multiprocessors, the smallest first.

    Each is a multiple of `tp`, as batches are: the ranks of an attention group hold equal parts.
    """
    counts = (1, 128, max(sms // 8, 2) * TILE, max(sms // 4, 4) * TILE, sms * TILE)
    return tuple(sorted({-(-count // tp) * tp for count in counts}))


def most_tokens(config: EngineConfig) -> int:
    """The most tokens that a layer is given at once: of all dp ranks, padding included."""
    scheduler, split = config.scheduler, config.parallelism
    step = scheduler.max_step_tokens or scheduler.chunk_size + scheduler.max_running
    return max(step + split.tp, scheduler.max_running) * split.dp


def steps(role: Role, counts: tuple[int, ...]) -> tuple[WarmStep, ...]:
    """What a rank of this role is to have run: decode shapes unless it only prefills, and chunks.

    A decode group computes chunks too, where a request that was preempted is computed again. A
    prefill group computes single tokens, where a prompt is one, or a chunk more than its last cut.
    """
    single = counts[:1] if role == "prefill" else counts
    decodes = tuple(WarmStep("decode", count) for count in single)
    return decodes + tuple(WarmStep("extend", count) for count in counts)
