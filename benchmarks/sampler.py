"""Choosing tokens from a whole vocabulary: ms a step of 64 rows, by what requests ask for.

Each figure is the least of some runs. `value` is a draw at temperature 1, the API's default, from
151,936 logits a row; `ratio` is it over 9 ms. The logits are normal numbers: few models are as
flat, and top_p then leaves two thirds of the vocabulary. `ms` has all of it for each instruction
set that this machine has, `core_ms` with one thread and without the time that others had its core,
`torch_ms` what the definition in torch takes for `torch_rows` of them.

Draws from a small vocabulary are compared with the exact distribution by χ²: `p_values` are the
chances of so great a difference, or a greater one, where there is none. The run fails below 1e-6.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence

import torch
from common import doing, kernels, say
from pds_kernels.cpu import isa
from pds_kernels.sampler import Bounds, Draws, Geometry, Penalties, Rows, Selection
from pds_kernels.sampler.cpu import LIBRARY, OnCpu, make
from pds_kernels.sampler.reference import InTorch

VOCAB, ROWS, AIM = 151_936, 64, 9.0
CPU = torch.device("cpu")
SMALL, LEAST_CHANCE = 24, 1e-6
CASES = {  # temperature, top_k, top_p, min_p
    "greedy": (0.0, 0, 1.0, 0.0),
    "temperature 1": (1.0, 0, 1.0, 0.0),
    "temperature 0.7": (0.7, 0, 1.0, 0.0),
    "top_p 0.95": (1.0, 0, 0.95, 0.0),
    "top_k 50": (1.0, 50, 1.0, 0.0),
    "min_p 0.05": (1.0, 0, 1.0, 0.05),
}


def rows_of(count: int, temperature: float, seed: int = 0) -> Rows:
    draws = Draws.of(range(seed, seed + count), [0] * count, range(count), CPU)
    return Rows.of([temperature] * count, draws)


def bounds_of(count: int, top_k: int, top_p: float, min_p: float) -> Bounds:
    return Bounds.of([top_k] * count, [top_p] * count, [min_p] * count, CPU)


def penalties_of(count: int) -> Penalties:
    """Of prompts of 1,000 tokens and outputs of 200."""
    prompted = torch.zeros(count, VOCAB, dtype=torch.bool)
    prompted.scatter_(1, torch.randint(VOCAB, (count, 1000)), True)
    counts = torch.zeros(count, VOCAB, dtype=torch.int32)
    counts.scatter_(1, torch.randint(VOCAB, (count, 200)), 1)
    every, tenth = torch.arange(count), torch.full((count,), 0.1)
    return Penalties(every, every, prompted, counts, tenth + 1, tenth, tenth)


def least_ms(work: Callable[[], object], times: int) -> float:
    """By the clock; of one thread alone, what it had of its core."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    found = []
    for _ in range(times):
        begun = clock()
        work()
        found.append(clock() - begun)
    return round(1000 * min(found), 2)


def measured(selection: OnCpu | InTorch, logits: torch.Tensor, times: int) -> dict[str, float]:
    """ms of each case."""
    count, found = len(logits), {}
    for name, (temperature, *bounds) in CASES.items():
        rows, bound = rows_of(count, temperature), bounds_of(count, *bounds)
        if isinstance(selection, OnCpu) and tuple(bounds) == (0, 1.0, 0.0):
            found[name] = least_ms(lambda rows=rows: selection(logits, rows), times)  # type: ignore[misc]
        else:
            found[name] = least_ms(
                lambda rows=rows, bound=bound: selection.draw(logits, rows, bound),  # type: ignore[misc]
                times,
            )
    penalties = penalties_of(count)
    found["penalties"] = least_ms(lambda: selection.penalise(logits, penalties)(), times)
    return found


def chance(statistic: float, degrees: int) -> float:
    """That a sum of so many squared standard normal numbers is `statistic` or more."""
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def p_value(ids: torch.Tensor, chances: Sequence[float]) -> float:
    """χ² of drawn ids against what is left of the vocabulary."""
    expected = torch.tensor(chances, dtype=torch.float64) * len(ids)
    counts = torch.bincount(ids, minlength=len(chances)).double()
    left = expected > 0
    if counts[~left].any():
        return 0.0
    statistic = ((counts - expected) ** 2 / expected)[left].sum()
    return chance(float(statistic), int(left.sum()) - 1)


def fits(selection: Selection, count: int) -> dict[str, float]:
    """p-values of each case, drawn `count` times from one small vocabulary."""
    torch.manual_seed(1)
    logits, found = torch.randn(SMALL), {}
    for name, (temperature, top_k, top_p, min_p) in CASES.items():
        if temperature == 0:
            continue
        chances = (logits.double() / temperature).softmax(0)
        ordered, ids = chances.sort(descending=True)
        kept = (torch.arange(SMALL) < (top_k or SMALL)) & (ordered >= min_p * ordered[0])
        kept &= ordered.cumsum(0) - ordered < top_p
        left = torch.zeros_like(chances).scatter(0, ids, ordered * kept)
        rows = rows_of(count, temperature, seed=17)
        drawn = selection.draw(
            logits.expand(count, -1), rows, bounds_of(count, top_k, top_p, min_p)
        )[1]
        found[name] = p_value(drawn, (left / left.sum()).tolist())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs and draws")
    quick = parser.parse_args().quick
    times, draws = (3, 10_000) if quick else (30, 500_000)
    torch.manual_seed(0)
    logits = torch.randn(ROWS, VOCAB)
    ms, core_ms, p_values = {}, {}, {}
    threads = torch.get_num_threads()
    with doing("choosing tokens", 300 if quick else 900):
        for which in kernels.sets(few=quick):
            with kernels.of(which, LIBRARY):
                selection = make(Geometry(VOCAB, 0, CPU))
                ms[which.name] = measured(selection, logits, times)
                torch.set_num_threads(1)
                core_ms[which.name] = measured(selection, logits, times)
                torch.set_num_threads(threads)
                p_values[which.name] = fits(make(Geometry(SMALL, 0, CPU)), draws)
        say("the definition in torch")
        few = 1 if quick else 8
        torch_ms = measured(InTorch(0), logits[:few], 1 if quick else 3)
    best = ms[isa.here().name]
    least = min(min(each.values()) for each in p_values.values())
    result = {
        "name": "sampler",
        "value": best["temperature 1"],
        "unit": "ms",
        "better": "lower",
        "baseline": AIM,
        "ratio": round(best["temperature 1"] / AIM, 3),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "instructions": isa.here().name,
        "rows": ROWS,
        "vocabulary": VOCAB,
        "ms": ms,
        "core_ms": core_ms,
        "torch_rows": few,
        "torch_ms": torch_ms,
        "least_p_value": round(least, 6),
        "p_values": {
            name: {k: round(v, 4) for k, v in each.items()} for name, each in p_values.items()
        },
    }
    print(json.dumps(result, ensure_ascii=False))
    if least < LEAST_CHANCE:
        raise SystemExit(f"error: draws do not follow their distribution: p = {least:g}")


if __name__ == "__main__":
    main()
