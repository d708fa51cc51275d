"""What artefacts are compiled for: the machine itself, or a kind of GPU that may not be near."""

import re
from dataclasses import dataclass

import torch

_SM = re.compile(r"sm_([0-9]{2,3})")
SMS = {80: 108, 86: 84, 89: 142, 90: 132, 100: 148, 120: 188}
"""Streaming multiprocessors of the largest part that is sold of each architecture (A100, A10, L40S,
H100 and H200, B200, RTX PRO 6000). A process on a GPU asks the device."""
SHARED_LIMIT = 227 << 10
"""Bytes of shared memory that a block may have on sm_90 and sm_100 (CUDA C++ Programming Guide,
"Compute Capabilities")."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU."""

    arch: int
    """Compute capability: 90 for 9.0."""
    sms: int
    """Streaming multiprocessors."""

    def __str__(self) -> str:
        return f"sm_{self.arch}"


def gpu(text: str, sms: int | None = None) -> Gpu:
    """The GPU that `text` names: sm_90.

    Raises:
        ValueError: it names none that is known here.
    """
    found = _SM.fullmatch(text)
    arch = int(found[1]) if found else 0
    if sms is None and arch not in SMS:
        known = ", ".join(f"sm_{each}" for each in SMS)
        raise ValueError(f"target {text!r} is not known: give one of {known}")
    return Gpu(arch, SMS[arch] if sms is None else sms)


def of(device: torch.device) -> Gpu | None:
    """What `device` is; None: no GPU that is here."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(device)
    return Gpu(10 * found.major + found.minor, found.multi_processor_count)
