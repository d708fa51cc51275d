"""Three published policies, each written from its description (docs/data-parallel.md), and none.

A policy is made anew for each run: it has a state. All ranks of a policy decide alike, but for
vLLM's guard and sglang's chunks, which a rank may apply alone.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from delaying.fleet import Policy, View


def off(views: Sequence[View]) -> Sequence[bool]:
    """Prompts run as soon as they can."""
    return [True] * len(views)


@dataclass(slots=True)
class Interval:
    """vLLM #44558: prompts run in every n-th pass.

    A rank keeps none back where nothing decodes on it, nor after a pass that left requests of its
    queue without a token: it is saturated.
    """

    interval: int = 2
    step: int = 0
    saturated: list[bool] = field(default_factory=list)

    def __call__(self, views: Sequence[View]) -> Sequence[bool]:
        self.saturated = self.saturated or [False] * len(views)
        throttled = self.step % self.interval != 0
        self.step += 1
        runs = []
        for rank, view in enumerate(views):
            held = throttled and not self.saturated[rank] and view.row.decode_tokens > 0
            if not held:
                self.saturated[rank] = view.waiting > 0
            runs.append(not held)
        return runs


@dataclass(slots=True)
class Coalescer:
    """ROCm ATOM #1611: prompts wait until all ranks have some and their sum fills the budget."""

    fill: float = 0.7
    longest: int = 30
    partial: int = 8
    stall: int = 3
    high: float = 0.9
    first: bool = True
    waited: int = 0
    stalled: int = 0
    last: int = -1

    def __call__(self, views: Sequence[View]) -> Sequence[bool]:
        runs = self.first or self._runs(views)
        self.first = False
        if runs:
            self.waited, self.stalled, self.last = 0, 0, -1
        else:
            self.waited += 1
        return [runs] * len(views)

    def _runs(self, views: Sequence[View]) -> bool:
        ready = [view for view in views if view.row.prompt_tokens]
        if not ready or not any(view.row.running for view in views):
            return True
        if any(view.usage >= self.high for view in ready):
            return True
        begun = any(view.row.begun for view in views)
        if self.waited >= (self.partial if begun else self.longest):
            return True
        if len(ready) < len(views):
            return False
        pending = sum(min(view.row.pending_tokens, view.chunk) for view in views)
        if pending >= self.fill * sum(view.chunk for view in ready):
            return True
        self.stalled = self.stalled + 1 if pending <= self.last else 0
        self.last = pending
        return self.stalled >= self.stall


@dataclass(slots=True)
class Table:
    """sglang #16363 and #24768: prompts wait until all ranks have some, and slots for many.

    The next chunk of a prompt ignores the verdict. Where all have prompts, they wait while a rank
    has fewer free slots than the most prompts that one of the last 16 batches had.
    """

    longest: int = 30
    low: float | None = None
    skip: bool = True
    waited: int = 0
    batches: deque[int] = field(default_factory=lambda: deque(maxlen=16))

    def __call__(self, views: Sequence[View]) -> Sequence[bool]:
        runs = self._runs(views)
        self.waited = 0 if runs else self.waited + 1
        if runs and (most := max(view.prompts for view in views)):
            self.batches.append(most)
        return [runs or bool(view.row.begun) for view in views]

    def _runs(self, views: Sequence[View]) -> bool:
        ready = [view for view in views if view.row.prompt_tokens]
        if not ready:
            return True
        if self.low is not None and any(view.usage < self.low for view in ready):
            return True
        if len(ready) == len(views):
            free = min(view.slots - view.row.running for view in views)
            if free >= max(self.batches, default=0):
                return True
            if self.skip:
                self.skip = False
                return True
        return self.waited >= self.longest - 1


RIVALS: dict[str, Callable[[], Policy]] = {
    "off": lambda: off,
    "sglang": Table,
    "vllm": Interval,
    "atom": Coalescer,
}
