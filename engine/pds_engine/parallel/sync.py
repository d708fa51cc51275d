"""Where the dp ranks' rows are gathered, and by what: chosen in one place. No torch."""

from typing import Literal

from pds_engine.config import EngineConfig

SyncMode = Literal["none", "host", "device"]


def sync_mode(config: EngineConfig) -> SyncMode:
    """Group and device of the gather, chosen together and only here.

    none: dp 1, or dp.gather: none. host: gloo among the schedulers, on host tensors. device: the
    device's own backend (NCCL; gloo on CPU) among the workers of stage 0, shard 0, on that device's
    tensors. A scheduler that plans one step at a time has nothing to overlap the gather with, so it
    takes the fast one.
    (sglang #24768 chose them apart: the buffer was on the GPU, and the group was gloo.)
    """
    if config.parallelism.dp == 1 or config.dp.gather == "none":
        return "none"
    if config.dp.sync_device == "device" or not config.scheduler.async_scheduling:
        return "device"
    return "host"
