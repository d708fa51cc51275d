"""What a chunk costs, learnt from measured ones, so that chunks can be cut to equal cost.

A chunk of l tokens after o others takes a·((o+l)² - o²) + b·l + c seconds: attention reads all that
came before, the rest of a layer is linear, and c is paid once. (SGLang's dynamic chunks fit the
same parabola, to a profile made at the start; here it is fitted to the chunks that are served.)
With a sliding window attention reads no more than that: behind it the parabola goes on straight.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from math import inf, sqrt
from operator import mul, truediv
from statistics import median
from typing import NamedTuple

KEPT = 4
"""Measurements kept for each power of two of where in a prompt they began."""
PLACES = 3
"""Such powers that must have been measured: a parabola through one place says nothing of others."""
REFIT = 8
"""Measurements between two fits."""
ROUNDS = 5
"""Solutions of the weighted squares on the way to the least absolute deviations."""
HELD_UP = 4
"""A step that misses these by so many times the median miss was held up by something else."""
TOLERANCE = 0.2
"""Share of the time that half of the measurements may miss a fit by; beyond it, it is noise."""


class Cost(NamedTuple):
    """What the first n tokens of a prompt cost together: quadratic·n² + linear·n.

    As it stands, before anything is known: their number. With a window n² goes on as its tangent
    from n = window on.
    """

    quadratic: float = 0.0
    linear: float = 1.0
    window: float = inf

    def of(self, start: int, length: int) -> float:
        """The cost of `length` tokens that come after `start` others."""
        if start + length <= self.window:
            return (self.quadratic * (2 * start + length) + self.linear) * length
        return self.quadratic * squares(start, length, self.window) + self.linear * length

    def length(self, start: int, budget: float) -> int:
        """The most tokens after `start` others that cost no more than `budget`."""
        slope = 2 * self.quadratic * start + self.linear
        root = sqrt(slope * slope + 4 * self.quadratic * budget)
        length = 2 * budget / (slope + root)
        if start + length > self.window:
            inside = max(int(self.window) - start, 0)
            slope = 2 * self.quadratic * self.window + self.linear
            length = inside + (budget - self.of(start, inside)) / slope
        return int(length + 1e-6)


def squares(start: int, length: int, window: float) -> float:
    """(start + length)² - start², each square as its tangent behind the window."""
    if start + length <= window:
        return length * (2 * start + length)
    inside = max(window - start, 0)
    return inside * (2 * start + inside) + 2 * window * (length - inside)


class Measured(NamedTuple):
    """The chunks of one step, as (start, length), and the seconds they took together."""

    chunks: tuple[tuple[int, int], ...]
    seconds: float

    @property
    def place(self) -> int:
        """The power of two of where the last of them begins."""
        return max(start for start, _ in self.chunks).bit_length()


class Meter:
    """Measurements, a bounded number of them, and what they say a chunk costs."""

    def __init__(self, window: int | None = None) -> None:
        self.cost = Cost()
        self._window = inf if window is None else window
        self._kept: defaultdict[int, deque[Measured]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._since = 0

    def add(self, measured: Measured) -> None:
        """Take a measurement in; every few of them the cost is fitted anew.

        A fit that makes no sense changes nothing.
        """
        if measured.seconds <= 0 or not measured.chunks:
            return
        self._kept[measured.place].append(measured)
        self._since += 1
        if self._since >= REFIT and len(self._kept) >= PLACES:
            self._since = 0
            kept = [one for kept in self._kept.values() for one in kept]
            self.cost = fit(kept, self._window) or self.cost


def fit(measured: Sequence[Measured], window: float = inf) -> Cost | None:
    """The cost that meets the measurements best; None where none makes sense.

    Sense: late chunks cost more, no term is negative, and half of the measurements are met within
    TOLERANCE.
    """
    if not measured:
        return None
    squared = [float(sum(squares(start, n, window) for start, n in one.chunks)) for one in measured]
    lengths = [float(sum(n for _, n in one.chunks)) for one in measured]
    once = [1.0] * len(measured)
    seconds = [one.seconds for one in measured]
    alike = max(lengths) < 2 * min(lengths)
    for columns in ([squared, lengths, once], [squared, lengths])[alike:]:
        # Where lengths are alike, c cannot be told from b: it counts as b's.
        terms = robust(columns, seconds)
        if terms is None or min(terms) < 0:
            continue
        misses = map(truediv, _misses(columns, terms, seconds), seconds)
        if min(terms[:2]) > 0 and median(misses) <= TOLERANCE:
            return Cost(terms[0], terms[1], window)
    return None


Columns = Sequence[Sequence[float]]


def robust(columns: Columns, seconds: Sequence[float]) -> list[float] | None:
    """The terms of the columns: least squares over the steps that were not held up.

    None where the measurements do not tell the columns apart.

    Least absolute deviations find those that were (least squares, weighted by the inverse of the
    last misses): a step that was held up for long pulls at the fit no more than one a little late.
    """
    sizes = [max(column) for column in columns]
    scaled = [[x / size for x in column] for column, size in zip(columns, sizes, strict=True)]
    least = 1e-6 * median(seconds)
    weights = [1.0] * len(seconds)
    misses: list[float] = []
    for _ in range(ROUNDS):
        terms = _least_squares(scaled, seconds, weights)
        if terms is None:
            return None
        misses = _misses(scaled, terms, seconds)
        weights = [1 / max(miss, least) for miss in misses]
    usual = HELD_UP * max(median(misses), least)
    terms = _least_squares(scaled, seconds, [float(miss <= usual) for miss in misses])
    return terms and [term / size for term, size in zip(terms, sizes, strict=True)]


def _misses(columns: Columns, terms: Sequence[float], seconds: Sequence[float]) -> list[float]:
    rows = zip(*columns, strict=True)
    return [abs(t - sum(map(mul, row, terms))) for row, t in zip(rows, seconds, strict=True)]


def _least_squares(
    columns: Columns, seconds: Sequence[float], weights: Sequence[float]
) -> list[float] | None:
    """The terms of the columns; None when the measurements do not tell them apart."""
    weighted = [list(map(mul, column, weights)) for column in columns]
    equations = [[sum(map(mul, left, right)) for right in (*columns, seconds)] for left in weighted]
    return _solve(equations)


def _solve(equations: list[list[float]]) -> list[float] | None:
    """Gauss' elimination with the largest pivots; None when there is no single solution."""
    count = len(equations)
    least = 1e-12 * max(abs(equations[i][i]) for i in range(count))
    for i in range(count):
        best = max(range(i, count), key=lambda row: abs(equations[row][i]))
        equations[i], equations[best] = equations[best], equations[i]
        pivot = equations[i]
        if abs(pivot[i]) <= least:
            return None
        for j in range(count):
            if j != i:
                factor = equations[j][i] / pivot[i]
                equations[j] = [x - factor * y for x, y in zip(equations[j], pivot, strict=True)]
    return [equations[i][count] / equations[i][i] for i in range(count)]
