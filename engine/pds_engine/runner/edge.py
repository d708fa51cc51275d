"""The edge between host and device: how a step's results reach the host.

A step opens a passage when it is launched, copies what the host will read, and closes it. On a GPU
the copies go to pinned memory on a stream of their own, so that the next step computes meanwhile;
on a CPU everything is there at once. Tests have a passage that ends late.
"""

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from pds_engine.parallel.launch import Event


class Passage(Event, Protocol):
    """One step's way through the device; an event that fires at its end."""

    def copy(self, tensor: Tensor) -> Tensor:
        """`tensor` on the host, to be read once the passage has fired."""

    def close(self) -> None:
        """All of the step is launched, and all copies are begun."""

    def seconds(self) -> float:
        """That the device took from the opening to the end; once it has fired."""


Edge = Callable[[], Passage]
"""Opens a passage for the step that is about to be launched."""


class HostPassage:
    """On a CPU: what is launched is computed, and the host reads it where it lies."""

    fired = True

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._seconds = 0.0

    def copy(self, tensor: Tensor) -> Tensor:
        return tensor

    def close(self) -> None:
        self._seconds = time.perf_counter() - self._begun

    def wait(self) -> None:
        """Nothing is left to wait for."""

    def seconds(self) -> float:
        return self._seconds


class CudaPassage:
    """On a GPU: copies wait for what computes them, on a stream of their own."""

    def __init__(self, copies: torch.cuda.Stream) -> None:
        self._copies = copies
        self._device = copies.device
        self._begun = _event(timed=True)
        self._computed = _event(timed=True)
        self._copied = _event()
        self._begun.record()

    @property
    def fired(self) -> bool:
        return bool(self._copied.query())  # type: ignore[no-untyped-call]

    def copy(self, tensor: Tensor) -> Tensor:
        self._copies.wait_stream(torch.cuda.current_stream(self._device))
        there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        with torch.cuda.stream(self._copies):
            there.copy_(tensor, non_blocking=True)
        tensor.record_stream(self._copies)  # its memory is not given out anew before that
        return there

    def close(self) -> None:
        self._computed.record()
        self._copies.wait_event(self._computed)
        self._copied.record(self._copies)

    def wait(self) -> None:
        self._copied.synchronize()

    def seconds(self) -> float:
        return float(self._begun.elapsed_time(self._computed)) / 1000


def edge(device: torch.device) -> Edge:
    """Of a rank on `device`."""
    if device.type != "cuda":
        return HostPassage
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return lambda: CudaPassage(copies)


def _event(*, timed: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=timed)  # type: ignore[no-untyped-call]
