"""Numbers of the host on a device, without waiting for the device.

A copy from ordinary memory waits until all that was launched before is computed, or may (CUDA, "API
synchronization behavior"). From pinned memory it is queued like a kernel.
"""

import torch
from torch import Tensor


def upload(numbers: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`numbers`, nested lists or tuples of equal lengths, as a tensor on `device`."""
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=dtype, device=device)
    return sent(torch.tensor(numbers, dtype=dtype), device)


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on `device`; on a CPU it is the same."""
    if device.type != "cuda":
        return numbers.to(device)
    # Pinned memory is used again only once the copies out of it are done (torch's allocator).
    return numbers.pin_memory().to(device, non_blocking=True)
