"""Whether a worker captures its decode steps as CUDA graphs, and what it says of that."""

import logging

import torch

from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.runner.replay import CudaCapture
from pds_engine.runner.runner import Runner

logger = logging.getLogger("pds.worker")


def capture(config: EngineConfig, runner: Runner, device: torch.device) -> None:
    """Capture decode steps as graphs, on a GPU.

    Raises:
        ConfigError: this model's steps cannot be captured, or there is no memory left for it.
    """
    if device.type != "cuda" or not config.cuda_graphs or config.role == "prefill":
        return
    try:
        sizes = runner.capture(CudaCapture())
    except RuntimeError as error:
        raise ConfigError(
            f"cuda_graphs: decode steps cannot be captured: {error}",
            hint="set cuda_graphs: false (engine.cudaGraphs), or leave more memory by "
            "kv.memory_bytes",
        ) from error
    if sizes:
        logger.info("decode steps are replayed as graphs of %s tokens", list(sizes))
    else:
        logger.info("decode steps are launched kernel by kernel")
