"""The constants of a Cost, from measured passes.

A line of the file is one pass: {"loads": [[rows, context, tokens, pairs] of each rank, …],
"seconds": …}; Load says what the four are.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from delaying.costs import CONSTANTS, Cost, Load

ROUNDS = 20
Passes = Sequence[tuple[Sequence[Load], float]]


def read(path: Path) -> Passes:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [([Load(*load) for load in line["loads"]], line["seconds"]) for line in lines]


def fit(passes: Passes) -> tuple[Cost, float]:
    """The cost with the least squares of relative misses, and the median of those misses.

    No constant is negative: one that would be is left out. Which rank is the busiest follows from
    the constants, and they from it: a few rounds settle both.
    """
    cost = Cost(0.0, 0.0, 1e-6, 1e-9, 1e-12, 1e-6)
    seconds = np.array([taken for _, taken in passes])
    for _ in range(ROUNDS):
        columns = np.array([_terms(loads, cost) for loads, _ in passes]) / seconds[:, None]
        cost = Cost(*_least_squares(columns))
    misses = [abs(cost.of(loads) - taken) / taken for loads, taken in passes]
    return cost, median(misses)


def _terms(loads: Sequence[Load], cost: Cost) -> list[float]:
    """What each constant is multiplied by in this pass."""
    busiest = max(loads, key=lambda load: cost.of([load]) - cost.shared * (load.rows + load.tokens))
    prompts = any(load.tokens for load in loads)
    rows, context, tokens, pairs = busiest
    total = sum(load.rows + load.tokens for load in loads)
    return [not prompts, prompts, rows + tokens, context, pairs, total]


def _least_squares(columns: Any) -> list[float]:
    kept = list(range(len(CONSTANTS)))
    while True:
        sizes = np.abs(columns[:, kept]).max(axis=0)
        sizes[sizes == 0] = 1.0
        found = np.linalg.lstsq(columns[:, kept] / sizes, np.ones(len(columns)), rcond=None)[0]
        if found.min() >= 0 or len(kept) == 1:
            break
        kept.pop(int(found.argmin()))
    constants = [0.0] * len(CONSTANTS)
    for place, value in zip(kept, found / sizes, strict=True):
        constants[place] = float(value)
    return constants
