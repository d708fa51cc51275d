"""Matrices of settings, and the few cases of them that a test takes."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

Case = dict[str, Any]


def name(case: Case) -> str:
    return "-".join(f"{axis}{value}" for axis, value in case.items())


@dataclass(frozen=True)
class Matrix:
    """All cases of some axes, of which groups are started one after another."""

    axes: Mapping[str, Sequence[Any]]
    possible: Callable[[Case], bool]
    shape: Callable[[Case], tuple[Any, ...]]
    """What a group is started with: cases of one shape run on one group."""
    price: Callable[[Case], float]
    """About the seconds of processor time to start its group; a case on a group is 1."""
    wholly: tuple[str, ...] = ()
    """Axes of which all combinations are to occur, not only all pairs."""

    def every(self) -> list[Case]:
        cases = (
            dict(zip(self.axes, values, strict=True)) for values in product(*self.axes.values())
        )
        return [case for case in cases if self.possible(case)]

    def covering(self, seed: int | None = None) -> list[Case]:
        """Some of the cases, with every two values that occur together in any of them.

        Greedy: the case with the most new pairs for its price is next; of equals the first one, or
        any by this seed. Some seeds make far cheaper choices than others.
        """
        cases = self.every()
        if seed is not None:
            random.Random(seed).shuffle(cases)
        parts = [self._parts(case) for case in cases]
        # In order of occurrence, so that the choice does not depend on hashes.
        bits = {
            part: 1 << at for at, part in enumerate(dict.fromkeys(p for of in parts for p in of))
        }
        masks = [sum(bits[part] for part in of) for of in parts]
        left, started, chosen = (1 << len(bits)) - 1, set[tuple[Any, ...]](), list[Case]()
        while left:
            worth = [
                (left & mask).bit_count() / (1 + (shape not in started and self.price(case)))
                for case, shape, mask in zip(cases, map(self.shape, cases), masks, strict=True)
            ]
            best = worth.index(max(worth))
            chosen.append(cases[best])
            started.add(self.shape(cases[best]))
            left &= ~masks[best]
        return self.side_by_side(chosen)

    def sample(self, size: int, seed: int) -> list[Case]:
        return self.side_by_side(random.Random(seed).sample(self.every(), size))

    def side_by_side(self, cases: Sequence[Case]) -> list[Case]:
        """In their order, but those of one shape after each other."""
        order = list(dict.fromkeys(map(self.shape, cases)))
        return sorted(cases, key=lambda case: order.index(self.shape(case)))

    def _parts(self, case: Case) -> list[frozenset[Any]]:
        whole = [frozenset((axis, case[axis]) for axis in self.wholly)] if self.wholly else []
        return [*map(frozenset, combinations(case.items(), 2)), *whole]


def pairs(cases: Sequence[Case]) -> set[tuple[tuple[str, Any], tuple[str, Any]]]:
    """Every two values that occur together."""
    return {pair for case in cases for pair in combinations(case.items(), 2)}
