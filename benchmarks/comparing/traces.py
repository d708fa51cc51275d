"""An open-loop trace: requests come when they come, whatever the server does."""

import asyncio
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from comparing.client import Answer, stream


@dataclass(frozen=True, slots=True)
class Kind:
    """A part of the mixture. Lengths are drawn evenly from these bounds, both included."""

    share: float
    prompt: tuple[int, int]
    tokens: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Request:
    at: float
    """Seconds from the beginning."""
    prompt: tuple[int, ...]
    tokens: int


@dataclass(frozen=True, slots=True)
class Objective:
    """What a user accepts of one request, in seconds."""

    first: float
    gap: float
    """The 99th percentile of its gaps."""

    def met(self, answer: Answer) -> bool:
        return (
            not answer.error
            and answer.first <= self.first
            and quantile(answer.gaps, 0.99) <= self.gap
        )


def poisson(rate: float, seconds: float, kinds: Sequence[Kind], vocab: int) -> list[Request]:
    """So many requests a second on average, the same each time."""
    draw, at, found = random.Random(0), 0.0, []
    weights = [kind.share for kind in kinds]
    while (at := at + draw.expovariate(rate)) < seconds:
        (kind,) = draw.choices(kinds, weights)
        length, tokens = draw.randint(*kind.prompt), draw.randint(*kind.tokens)
        prompt = tuple(draw.randrange(3, vocab) for _ in range(length))
        found.append(Request(at, prompt, tokens))
    return found


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest value; 0 of none."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


async def play(url: str, trace: Sequence[Request], until: float) -> list[Answer]:
    """Each request at its time, on a connection of its own; a late client would close the loop.

    What is not answered `until` seconds after the beginning is left.
    """

    async def ask(request: Request) -> Answer:
        await asyncio.sleep(max(0.0, begun + request.at - time.perf_counter()))
        left = begun + until - time.perf_counter()
        return await stream(url, request.prompt, request.tokens, left)

    begun = time.perf_counter()
    return await asyncio.gather(*(ask(request) for request in trace))


def judged(answers: Sequence[Answer], seconds: float, objective: Objective) -> dict[str, float]:
    """What a trace was like for its clients; times in ms, of requests that were answered whole."""
    whole = [answer for answer in answers if not answer.error]
    firsts, gaps = [a.first for a in whole], [gap for a in whole for gap in a.gaps]
    return {
        "requests": len(answers),
        "failed": len(answers) - len(whole),
        "goodput": sum(map(objective.met, answers)) / seconds,
        "ttft_p50_ms": 1000 * quantile(firsts, 0.5),
        "ttft_p99_ms": 1000 * quantile(firsts, 0.99),
        "gap_p50_ms": 1000 * quantile(gaps, 0.5),
        "gap_p99_ms": 1000 * quantile(gaps, 0.99),
    }


def middle(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each figure, the median over rounds."""
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
