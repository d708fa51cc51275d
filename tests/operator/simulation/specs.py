"""What users ask for: specs drawn by chance. Equal wishes are one and the same object."""

import dataclasses
import functools
import random
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


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
    dtype: str = "bfloat16"
    chunk: int = 64
    surge: int | str = 1
    unavailable: int | str = 0
    min_ready: int = 0
    drain: int = 8

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
    return {
        "model": {"name": "tiny", "source": {"path": "/models/tiny"}},
        "image": f"engine:{wish.version}-{kind}-{wish.nature}",
        "engine": {"kvDtype": wish.dtype, "chunkSize": wish.chunk},
        "compileCache": {"warmup": {"enabled": True}},
        "rollout": {
            "drainSeconds": wish.drain,
            "maxSurge": wish.surge,
            "maxUnavailable": wish.unavailable,
            "minReadySeconds": wish.min_ready,
        },
        **roles,
    }


def first(chance: random.Random) -> Wish:
    """What a run begins with."""
    surge, unavailable = chance.choice([(1, 0), (1, 0), (2, 0), (0, 1), (1, 1), ("50%", "25%")])
    return Wish(
        prefill=chance.randint(1, 4),
        decode=chance.randint(1, 3),
        surge=surge,
        unavailable=unavailable,
        min_ready=chance.choice([0, 0, 2]),
    )


def changed(wish: Wish, chance: random.Random) -> Wish:
    """Another wish, as an edit of this one."""
    more: Object = {}
    match chance.randrange(12):
        case 0 | 1 | 2:
            more = {"version": wish.version % 5 + 1}
        case 3:
            more = {"chunk": chance.choice([32, 128, 256])}
        case 4 | 5:
            more = {"dtype": "float32" if wish.dtype == "bfloat16" else "bfloat16"}
        case 6:
            more = {"paired": not wish.paired}
        case 7 | 8:
            more = {"prefill": chance.randint(1, 4), "decode": chance.randint(1, 3)}
        case 9:
            more = {
                "version": wish.version % 5 + 1,
                "prefill": chance.randint(1, 4),
                "decode": chance.randint(0 if chance.random() < 0.1 else 1, 3),
            }
        case 10:
            more = {"nature": chance.choice(["exit78", "crash", "warmup", "never"])}
        case 11:
            more = {"unified": not wish.unified, "paired": False}
    return dataclasses.replace(wish, **{"nature": "good", **more})
