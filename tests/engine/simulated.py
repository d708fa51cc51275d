"""What the fixtures of tests/engine/simulation are."""

from collections.abc import Sequence
from typing import Any, Protocol

from pds_engine.messages import Submit
from pds_simulation.group import Group
from pds_simulation.replicas import DataParallelGroup

Layout = tuple[int, int]
"""pp and tp."""


class Simulate(Protocol):
    """A group; what Machine has is given to it, the rest is the scheduler's settings."""

    def __call__(self, **about: Any) -> Group: ...


class SimulateRanks(Protocol):
    """A group of several dp ranks: what Machine and Between have is given to them."""

    def __call__(self, **about: Any) -> DataParallelGroup: ...


class Ask(Protocol):
    """A request, by the length of its prompt or by its tokens."""

    def __call__(
        self,
        name: str,
        prompt: int | Sequence[int],
        max_tokens: int = 1,
        *,
        seed: int = 1,
        **more: Any,
    ) -> Submit: ...
