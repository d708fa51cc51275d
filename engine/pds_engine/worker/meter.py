"""What a rank's memory holds: read from the kernel on a CPU, from torch's allocator on a GPU."""

import logging
from pathlib import Path
from typing import Protocol

import torch

from pds_engine.warming import memory

logger = logging.getLogger("pds.worker")


class Meter(Protocol):
    """Of one rank, in bytes."""

    total: int
    source: str
    """What sets `total`, in words."""

    def used(self) -> int:
        """By this rank now."""

    def base(self) -> int:
        """Of a limit that processes share: what this one holds that no file backs."""

    def reset(self) -> None:
        """Let the peak begin anew."""

    def peak(self) -> int:
        """The most that was used since `reset`, or more, where the system cannot begin anew."""

    def others(self) -> int:
        """Of `total`, used by others."""


class Host:
    """The memory of this process: its resident set, by proc_pid_status(5)."""

    def __init__(self, root: Path = Path("/")) -> None:
        """`root` has `proc` and `sys` (`memory.ceiling`)."""
        self._process = root / "proc/self"
        ceiling = memory.ceiling(root)
        self.total, self.source = ceiling.bytes, ceiling.source
        self._limited = memory.limit(root) is not None

    def used(self) -> int:
        return self._status("VmRSS")

    def base(self) -> int:
        """0 without a limit: what the machine has left is beside what is used."""
        return self._status("RssAnon") if self._limited else 0

    def reset(self) -> None:
        try:
            (self._process / "clear_refs").write_text("5")  # resets VmHWM
        except OSError as error:
            logger.info("the peak of memory includes that of loading: clear_refs: %s", error)

    def peak(self) -> int:
        return self._status("VmHWM")

    def others(self) -> int:
        return 0

    def _status(self, key: str) -> int:
        for line in (self._process / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return int(value.split()[0]) << 10
        raise OSError(f"{self._process}/status has no {key}: set kv.memory_bytes")


class Card:
    """The memory of a GPU."""

    source = "the GPU"

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.total = torch.cuda.mem_get_info(device)[1]

    def used(self) -> int:
        return torch.cuda.memory_allocated(self._device)

    def base(self) -> int:
        return 0

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)

    def others(self) -> int:
        """What is taken of the card and not by torch: other processes, CUDA's and NCCL's own."""
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free - torch.cuda.memory_reserved(self._device)


def meter(device: torch.device) -> Meter:
    """Of `device`."""
    return Card(device) if device.type == "cuda" else Host()
