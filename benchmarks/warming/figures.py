"""What is told of one model's warm-ups. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from warming.building import Built, Ran
from warming.replay import Chain, apart, replay


@dataclass(frozen=True, slots=True)
class Group:
    """The pods of one PDServing, `stages` consecutive ones a group."""

    wants: Mapping[str, Sequence[Sequence[str]]]
    """Each pod's keys, for each set of numbers of tokens."""
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


def paths(group: Group, costs: Mapping[str, float]) -> dict[str, Chain]:
    """The longest chain of each way to warm up, all on one volume but the last."""

    def chain(counts: str, stages: int) -> Chain:
        wants = group.wants[counts]
        return replay(wants, group.begins, costs, workers=group.workers, stages=stages)

    return {
        "one stage after another, all counts": chain("all", group.stages),
        "one stage after another, every step": chain("step", group.stages),
        "one stage after another, our counts": chain("ours", group.stages),
        "all stages at once, all counts": chain("all", 0),
        "all stages at once, every step": chain("step", 0),
        "all stages at once, our counts": chain("ours", 0),
        "the same, and nothing shared": apart(group.wants["ours"], costs, workers=group.workers),
    }


def figures(found: Mapping[str, Chain], begin: Begin) -> dict[str, float]:
    """Seconds, and ratios (the old way over the new one) that each differ in one thing alone.

    `ratio` counts builds; `whole_ratio` also what every pod does by itself, which no sharing saves.
    """
    old = found["one stage after another, all counts"]
    new = found["all stages at once, our counts"]
    sequential = found["one stage after another, our counts"]
    complete = found["all stages at once, every step"]
    cold = begin.plan + begin.compilers
    warm = begin.plan + begin.find
    made = {
        "value": new.seconds,
        "baseline": old.seconds,
        "ratio": old.seconds / new.seconds,
        "shapes_ratio": old.seconds / sequential.seconds,
        "stages_ratio": sequential.seconds / new.seconds,
        "dedup_ratio": found["the same, and nothing shared"].builds / new.builds,
        "warm_ratio": old.seconds / begin.find,
        "complete_ratio": old.seconds / complete.seconds,
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
        f"{name:38} {each.builds:7d} {each.seconds:9.1f} {1 - each.seconds / old:7.0%}"
        for name, each in found.items()
    ]
    rows.append(f"{'warm restart':38} {0:7d} {begin.find:9.1f} {1 - begin.find / old:7.0%}")
    title = f"{'':38} {'builds':>7} {'CPU s':>9} {'less by':>7}"
    return "\n".join([title, *rows])
