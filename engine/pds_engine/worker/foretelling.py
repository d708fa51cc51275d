"""What a rank is going to hold, said and judged before it loads anything."""

import logging
from pathlib import Path

import torch

from pds_engine import sizing
from pds_engine.config import EngineConfig
from pds_engine.models.loader import DTYPES, compute_dtype
from pds_engine.models.registry import check
from pds_engine.warming import memory

logger = logging.getLogger("pds.worker")


def foretell(config: EngineConfig, rank: int, device: torch.device, root: Path = Path("/")) -> None:
    """Log what this rank is going to hold. `root` has `proc` and `sys` (`memory.limit`).

    Raises:
        ConfigError: its GPU has less memory; or on a CPU, this container has less than the ranks of
            its pod are going to hold together.
    """
    dtype = compute_dtype(DTYPES[config.model.dtype], device)
    kept = next(name for name, each in DTYPES.items() if each == dtype)
    ranks = sizing.sizes(config, check(config), kept)
    weights, pool = ranks[rank].weights, ranks[rank].pool
    words = (ranks[rank].name, sizing.human(weights), kept, sizing.human(pool))
    logger.info("%s is to hold %s of weights (%s) and %s of KV pages", *words)
    if device.type == "cuda":
        sizing.check_memory([ranks[rank]], torch.cuda.mem_get_info(device)[1], "its GPU")
        return
    limit = memory.limit(root)
    if limit is not None:
        first = config.pod.index * config.parallelism.ranks_per_pod
        mine = ranks[first : first + config.parallelism.ranks_per_pod]
        sizing.check_memory(mine, limit, "this container")
