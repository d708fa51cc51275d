"""What a rank is going to hold, said and judged before it loads anything."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from pds_kernels import cpu, linear, targets

from pds_engine import budget, sizing
from pds_engine.budget import Claim
from pds_engine.config import EngineConfig
from pds_engine.models import meta
from pds_engine.models.loader import DTYPES, compute_dtype
from pds_engine.models.registry import check
from pds_engine.sizing import RankSizes
from pds_engine.spec import DecoderSpec
from pds_engine.warming import memory
from pds_engine.worker.meter import Card, Host, Meter

logger = logging.getLogger("pds.worker")


def foretell(config: EngineConfig, rank: int, device: torch.device, root: Path = Path("/")) -> None:
    """Log what this rank is going to hold. `root` has `proc` and `sys` (`memory.limit`).

    Raises:
        ConfigError: its GPU has less memory; or on a CPU, this container has less than the ranks of
            its pod are going to hold together; or what kv.memory_fraction leaves of it is too
            little for one request.
    """
    # What packs weights keeps them as they are stored, whatever it computes in
    dtype = DTYPES[config.model.dtype]
    if not cpu.provided(linear.CPU_LIBRARY.name):
        dtype = compute_dtype(dtype, device)
    kept = next(name for name, each in DTYPES.items() if each == dtype)
    spec, gpu = check(config), targets.of(device)
    weigh = None if gpu is None else partial(meta.layer_bytes, config, spec, gpu=gpu)
    ranks = sizing.sizes(config, spec, kept, weigh)
    mine = [ranks[rank]]
    if device.type == "cpu":
        first = config.pod.index * config.parallelism.ranks_per_pod
        mine = list(ranks[first : first + config.parallelism.ranks_per_pod])
    size, most = ranks[rank], ""
    if not config.kv.sized:
        memory_of = Card(device) if device.type == "cuda" else Host(root)
        size = replace(size, pages=_fitting(config, spec, mine, memory_of))
        most = "at most "
    pool = f"{most}{sizing.human(size.pool)}"
    words = (size.name, sizing.human(size.weights), kept, pool)
    logger.info("%s is to hold %s of weights (%s) and %s of KV pages", *words)
    if not config.kv.sized:
        return
    if device.type == "cuda":
        sizing.check_memory(mine, torch.cuda.mem_get_info(device)[1], "its GPU")
    elif (limit := memory.limit(root)) is not None:
        sizing.check_memory(mine, limit, "this container")


def _fitting(
    config: EngineConfig, spec: DecoderSpec, mine: Sequence[RankSizes], meter: Meter
) -> int:
    """The pages of these ranks, which share a memory, if steps took nothing."""
    base = meter.base()
    claims = [
        Claim(
            rank=each.name,
            holder="theirs",
            total=meter.total,
            source=meter.source,
            base=base,
            weights=each.weights,
            tables=budget.penalties(config, spec, each.part),
            page_bytes=each.page_bytes,
        )
        for each in mine
    ]
    return budget.pages(config, spec, claims, budget.share(config, gpu=isinstance(meter, Card)))
