"""From raw figures to what is reported: medians, ratios, shares. Pure."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from comparing.models import Shape

Raw = Mapping[str, Mapping[str, Sequence[float]]]
"""By engine and figure ("prefill_8", "decode_32"), one number a round: tokens/s, or ms a step."""
Medians = Mapping[str, Mapping[str, float]]
OURS = "ours"


def medians(raw: Raw) -> dict[str, dict[str, float]]:
    """Figures without a number are left out."""
    return {
        engine: {name: statistics.median(each) for name, each in figures.items() if each}
        for engine, figures in raw.items()
    }


def quicker(name: str, figure: float, other: float) -> float:
    """The other's time over this one's."""
    if name.startswith("prefill"):
        return figure / other  # tokens a second
    return other / figure


def best_peer(found: Medians, name: str) -> tuple[str, float] | None:
    """The peer with the shortest time, and its figure; None where no peer has one."""
    peers = {
        engine: figures[name]
        for engine, figures in found.items()
        if engine != OURS and name in figures
    }
    if not peers:
        return None
    return max(peers.items(), key=lambda peer: quicker(name, peer[1], 1.0))


def ratios(found: Medians) -> dict[str, float]:
    """By figure, the best peer's time over ours."""
    compared = {}
    for name, figure in found.get(OURS, {}).items():
        best = best_peer(found, name)
        if best is not None:
            compared[name] = quicker(name, figure, best[1])
    return compared


def smallest(compared: Iterable[Mapping[str, float]]) -> float | None:
    """Over prefill and batches of several; a step at B = 1 is judged by the bandwidth instead."""
    kept = [value for each in compared for name, value in each.items() if name != "decode_1"]
    return min(kept, default=None)


def same(first: Mapping[str, Sequence[int]], engine: str) -> int:
    """Prompts after which `engine` has the token that ours has."""
    return sum(
        ours == theirs for ours, theirs in zip(first.get(OURS, ()), first[engine], strict=False)
    )


def bandwidth_share(shape: Shape, ms: float, bytes_per_second: float) -> float:
    """Of what memory can be read in a second, what a step of `ms` reads of the weights."""
    return shape.step_bytes() / (ms / 1000) / bytes_per_second


def product_share(shape: Shape, length: int, tokens_per_second: float, rate: float) -> float:
    """Of the rate of products, what a prefill at this speed multiplies."""
    return shape.prefill_flops(length) / length * tokens_per_second / rate


def rounded(value: float, digits: int = 4) -> float:
    """To so many significant digits."""
    if not value or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
