"""What is told of one model's warm-ups. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from warming.building import Built, Ran
from warming.replay import Chain, apart, replay

SEQUENTIAL = "one stage after another"
AT_ONCE = "all stages at once"
EVERY, OURS, FIVE = "1 to 16,384 tokens", "the engine's plan", "five numbers of tokens"
ALONE = "at once, nothing shared, the engine's plan"


@dataclass(frozen=True, slots=True)
class Group:
    """The pods of one PDServing, `stages` consecutive ones a group."""

    wants: Mapping[str, Sequence[Sequence[str]]]
    """Each pod's keys, for EVERY, OURS and FIVE."""
    begins: Sequence[Fraction]
    stages: int
    workers: int


@dataclass(frozen=True, slots=True)
class Begin:
    """CPU seconds of what each pod does by itself."""

    plan: float
    """Imports, and what is wanted."""
    compilers: float
    """Imports of its compile processes, once for all of them."""
    find: float
    """All artefacts are found, verified, copied and put where a GPU process looks."""


def chains(group: Group, costs: Mapping[str, float]) -> dict[str, Chain]:
    """The longest chain of each way to warm up; the oldest way first."""
    found = {
        f"{way}, {counts}": replay(
            group.wants[counts],
            group.begins,
            costs,
            workers=group.workers,
            stages=group.stages if way == SEQUENTIAL else 0,
        )
        for way in (SEQUENTIAL, AT_ONCE)
        for counts in (EVERY, OURS, FIVE)
    }
    return found | {ALONE: apart(group.wants[OURS], costs, workers=group.workers)}


def figures(found: Mapping[str, Chain], begin: Begin) -> dict[str, float]:
    """Seconds, and ratios: the old way over the new one.

    `ratio` counts builds; those that begin with whole also what every pod does by itself.
    """
    old, new = found[f"{SEQUENTIAL}, {EVERY}"], found[f"{AT_ONCE}, {OURS}"]
    sequential, five = found[f"{SEQUENTIAL}, {OURS}"], found[f"{AT_ONCE}, {FIVE}"]
    cold, warm = begin.plan + begin.compilers, begin.plan + begin.find
    made = {
        "value": new.seconds,
        "baseline": old.seconds,
        "ratio": old.seconds / new.seconds,
        "shapes_ratio": old.seconds / sequential.seconds,
        "stages_ratio": sequential.seconds / new.seconds,
        "dedup_ratio": found[ALONE].builds / new.builds,
        "warm_ratio": old.seconds / begin.find,
        "five_ratio": old.seconds / five.seconds,
        "less_cold": 1 - new.seconds / old.seconds,
        "less_warm": 1 - begin.find / old.seconds,
        "whole_s": cold + new.seconds,
        "whole_ratio": (cold + old.seconds) / (cold + new.seconds),
        "whole_warm_s": warm,
        "whole_warm_ratio": (cold + old.seconds) / warm,
    }
    return {name: round(number, 3) for name, number in made.items()}


def per_key(ran: Ran) -> dict[str, int]:
    """How many keys were built, and how often one was at most and at least."""
    counted = Counter(each.key for each in ran.builds)
    most, least = max(counted.values(), default=0), min(counted.values(), default=0)
    return {"keys": len(counted), "builds": len(ran.builds), "most": most, "least": least}


def by_compiler(builds: Sequence[Built]) -> dict[str, Any]:
    """Of each kind of artefact: how many, and the CPU seconds of one on average and at most."""
    found: dict[str, list[float]] = {}
    for each in builds:
        kind = "g++" if each.name == "launcher" else each.kind
        found.setdefault(kind, []).append(each.cpu)
    return {
        kind: {
            "builds": len(took),
            "mean_s": round(sum(took) / len(took), 2),
            "most_s": round(max(took), 2),
        }
        for kind, took in sorted(found.items())
    }


def table(found: Mapping[str, Chain], begin: Begin) -> str:
    """For people."""
    old = next(iter(found.values())).seconds
    rows = [
        f"{name:48} {each.builds:7d} {each.seconds:9.1f} {1 - each.seconds / old:7.0%}"
        for name, each in found.items()
    ]
    rows.append(f"{'warm restart':48} {0:7d} {begin.find:9.1f} {1 - begin.find / old:7.0%}")
    title = f"{'':48} {'builds':>7} {'CPU s':>9} {'less by':>7}"
    return "\n".join([title, *rows])
