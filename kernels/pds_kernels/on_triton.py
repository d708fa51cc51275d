"""Whether Triton's kernels run in this process."""

import functools
import importlib.util

import torch


@functools.cache
def installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def runs_on(device: torch.device) -> bool:
    """Whether a kernel serves tensors of `device`: a GPU, or a plan's meta device."""
    return installed() and device.type in ("cuda", "meta")
