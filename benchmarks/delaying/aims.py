"""What is asked of our policy, and whether it holds."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from delaying.fleet import Outcome
from delaying.match import BELOW
from delaying.rivals import RIVALS

Outcomes = Mapping[str, Mapping[str, Outcome]]
"""Of each trace, of each policy."""

OTHERS = tuple(name for name in RIVALS if name != "off")

METRICS: tuple[tuple[Callable[[Outcome], float], float], ...] = (
    (lambda outcome: outcome.rate, 1.02),
    (lambda outcome: 1 / outcome.wait(0.99), 1.05),
    (lambda outcome: 1 / outcome.gap(0.99), 1.05),
)
"""More is better; and by how much one must be ahead to count as ahead."""


class Aim(NamedTuple):
    what: str
    holds: bool
    found: str


def standing(mine: Outcome, other: Outcome) -> Literal["ahead", "even", "behind", "mixed"]:
    """Who is ahead in tokens a second, p99 of TTFT and p99 of gaps: in some, and behind in none."""
    ahead = any(of(mine) >= by * of(other) for of, by in METRICS)
    behind = any(of(other) >= by * of(mine) for of, by in METRICS)
    if ahead and behind:
        return "mixed"
    return "ahead" if ahead else "behind" if behind else "even"


def dominated(mine: Outcome, other: Outcome) -> bool:
    """The other is ahead in all three."""
    return all(of(other) >= by * of(mine) for of, by in METRICS)


def over(outcomes: Outcomes, trace: str, by: Callable[[Outcome], float]) -> float:
    """Ours over off."""
    return by(outcomes[trace]["ours"]) / by(outcomes[trace]["off"])


def rate(outcome: Outcome) -> float:
    return outcome.rate


def late(outcome: Outcome) -> float:
    return outcome.wait(0.99)


def aims(outcomes: Outcomes) -> list[Aim]:
    """The aims that can be judged on these traces: those that are asked for."""
    found: list[Aim] = []
    if "offline" in outcomes:
        gain = over(outcomes, "offline", rate)
        found.append(Aim("offline ≥ 1.40 × off", gain >= 1.40, f"{gain:.3f}"))
    if "poisson 110%" in outcomes:
        gain = over(outcomes, "poisson 110%", rate)
        found.append(Aim("at 110% of off's capacity ≥ 1.05 × off", gain >= 1.05, f"{gain:.3f}"))
        gaps = [over(outcomes, trace, lambda outcome: outcome.gap(0.5)) for trace in BELOW]
        text = ", ".join(f"{gap:.3f}" for gap in gaps)
        found.append(Aim("below capacity the median gap ≤ 1/3 of off", max(gaps) <= 1 / 3, text))
    if "persistent mixed" in outcomes:
        gain = over(outcomes, "persistent mixed", rate)
        found.append(Aim("persistent mixed never below off", gain >= 0.9995, f"{gain:.4f}"))
    worst = max((over(outcomes, trace, late), trace) for trace in outcomes)
    found.append(Aim("TTFT p99 ≤ 1.1 × off", worst[0] <= 1.1, f"{worst[0]:.3f} ({worst[1]})"))
    lost = [
        f"{trace}: {other}"
        for trace, row in outcomes.items()
        for other in OTHERS
        if dominated(row["ours"], row[other])
    ]
    found.append(Aim("no rival ahead in all three", not lost, ", ".join(lost) or "none"))
    for other in OTHERS:
        counts = [standing(row["ours"], row[other]) for row in outcomes.values()]
        text = ", ".join(f"{counts.count(each)} {each}" for each in sorted(set(counts)))
        most = 2 * counts.count("ahead") > len(counts)
        found.append(Aim(f"ahead of {other} on most traces", most, text))
    return found
