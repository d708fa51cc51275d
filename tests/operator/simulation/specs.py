"""What users ask for: specs drawn by chance. Equal wishes are one and the same object."""

import dataclasses
import functools
import random
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]
GIVEN_UP = ("exit78", "crash", "warmup")
"""Natures of images that show to be bad before anything is routed to them."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The few things of a spec that runs differ in."""

    prefill: int = 2
    decode: int = 1
    unified: bool = False
    """`prefill` groups of one role that does both."""
    version: int = 1
    nature: str = "good"
    """What the image does (`kubelet.Running.nature`)."""
    paired: bool = False
    """A prefill group has two pods."""
    shared: bool = False
    """The compile cache is a volume that all pods see."""
    ahead: bool = False
    """The cache is filled for a GPU that is not there, where it is shared."""
    dtype: str = "bfloat16"
    surge: int | str = 1
    unavailable: int | str = 0
    min_ready: int = 0
    drain: int = 8
    partition: int | str = 0
    paused: bool = False
    port: int = 8000
    """Of the endpoint's Service."""
    deadline: int = 0
    """Seconds of a rollout's progress deadline; 0: the default."""

    @property
    def lenient(self) -> bool:
        """Whether a role may be without a group."""
        return bool(self.unavailable) or not (self.prefill and (self.decode or self.unified))


@functools.cache
def spec(wish: Wish) -> Object:
    """The `spec` of a PDServing."""
    shape: Object = {"parallelism": {"pp": 2}} if wish.paired else {}
    roles: Object = (
        {"unified": {"replicas": wish.prefill}}
        if wish.unified
        else {
            "prefill": {"replicas": wish.prefill, **shape},
            "decode": {"replicas": wish.decode},
        }
    )
    kind = "pair" if wish.paired else "single"
    cache: Object = {"volume": {"existingClaim": "cache"}} if wish.shared else {}
    targets: Object = {"targets": ["sm_90"]} if wish.shared and wish.ahead else {}
    return {
        "model": {"name": "tiny", "source": {"path": "/models/tiny"}},
        "image": f"engine:{wish.version}-{kind}-{wish.nature}",
        "engine": {"kvDtype": wish.dtype},
        "router": {"replicas": 1, "service": {"port": wish.port}},
        "compileCache": {"warmup": {"enabled": True, **targets}, **cache},
        "rollout": {
            "drainSeconds": wish.drain,
            "maxSurge": wish.surge,
            "maxUnavailable": wish.unavailable,
            "minReadySeconds": wish.min_ready,
            **({"partition": wish.partition} if wish.partition else {}),
            **({"paused": True} if wish.paused else {}),
            **({"progressDeadlineSeconds": wish.deadline} if wish.deadline else {}),
        },
        **roles,
    }


def first(chance: random.Random) -> Wish:
    """What a run begins with."""
    surge, unavailable, min_ready = chance.choice(
        [(1, 0, 0), (1, 0, 2), (2, 0, 0), (0, 1, 0), (1, 1, 2), ("50%", "25%", 0)]
    )
    return Wish(
        prefill=chance.randint(1, 4),
        decode=chance.randint(1, 2),
        shared=chance.random() < 0.5,
        ahead=chance.random() < 0.3,
        surge=surge,
        unavailable=unavailable,
        min_ready=min_ready,
        deadline=chance.choice([0, 240]),
    )


def changed(wish: Wish, chance: random.Random) -> Wish:
    """Another wish, as an edit of this one."""
    another = {"version": wish.version % 3 + 1}
    counts = {"prefill": chance.randint(1, 4), "decode": chance.randint(1, 2)}
    more: Object = chance.choice(
        [
            another,
            another,
            another,
            {"dtype": "float32" if wish.dtype == "bfloat16" else "bfloat16"},
            {"dtype": "float32" if wish.dtype == "bfloat16" else "bfloat16"},
            {"paired": not wish.paired and not wish.unified},
            counts,
            counts,
            {**another, **counts},
            {**another, "decode": 0},
            {"nature": chance.choice(["exit78", "crash", "warmup", "never", "mismatch"])},
            {"unified": not wish.unified, "paired": False},
            {**another, "paused": True},
            {**another, "partition": chance.choice([1, "50%", "100%"])},
            {"paused": not wish.paused},
            {"ahead": not wish.ahead},
            {"port": 80 if wish.port == 8000 else 8000},
        ]
    )
    return dataclasses.replace(wish, **{"nature": "good", **more})


def next_version(wish: Wish) -> Wish:
    """`wish` with another image that is good."""
    return dataclasses.replace(wish, version=wish.version % 3 + 1, nature="good")


def mismatched(wish: Wish) -> Wish:
    """`wish` with another image, whose roles do not pair."""
    return dataclasses.replace(next_version(wish), nature="mismatch")


def unpullable(wish: Wish) -> Wish:
    """`wish` with another image, which is nowhere."""
    return dataclasses.replace(next_version(wish), nature="pull")


def waiting(wish: Wish) -> Wish:
    """`wish` as a rollout that is to wait."""
    return dataclasses.replace(wish, paused=True)


def freed(wish: Wish) -> Wish:
    """`wish` with nothing that keeps its rollout from its end."""
    return dataclasses.replace(wish, nature="good", partition=0, paused=False)


def held(spec: dict[str, Any]) -> bool:
    """No step of its rollout may be taken."""
    given = spec["rollout"]
    return bool(given.get("paused")) or given.get("partition") == "100%"
