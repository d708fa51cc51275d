"""A device whose steps end when the test says so: until then the host has nothing of them."""

import torch
from torch import Tensor

GARBAGE = -77
"""What lies in the host's memory before a copy has come."""


class LatePassage:
    """runner.edge.Passage that fires late."""

    def __init__(self) -> None:
        self.fired = False
        self.closed = False
        self._copies: list[tuple[Tensor, Tensor]] = []

    def copy(self, tensor: Tensor) -> Tensor:
        assert not self.closed
        there = torch.full_like(tensor, GARBAGE)
        self._copies.append((there, tensor))
        return there

    def close(self) -> None:
        self.closed = True

    def wait(self) -> None:
        assert self.fired, "the host would wait for the device"

    def seconds(self) -> float:
        assert self.fired
        return 1.5

    @torch.inference_mode()
    def fire(self) -> None:
        assert self.closed
        for there, tensor in self._copies:
            there.copy_(tensor)
        self.fired = True


class LateDevice:
    """runner.edge.Edge: opens passages, and ends the oldest when told to."""

    def __init__(self) -> None:
        self.passages: list[LatePassage] = []

    def __call__(self) -> LatePassage:
        self.passages.append(LatePassage())
        return self.passages[-1]

    @property
    def under_way(self) -> int:
        """Steps that are launched and not over."""
        return sum(not passage.fired for passage in self.passages)

    def fire(self) -> None:
        next(passage for passage in self.passages if not passage.fired).fire()
