"""The pods of a PDServing of two groups (prefill and decode), and what each is to have compiled."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pds_engine.artefacts.plan import plan
from pds_engine.config import EngineConfig
from pds_engine.models.registry import read_spec
from pds_engine.parallel.layout import part
from pds_kernels import targets
from pds_kernels.builders import deep_gemm
from pds_kernels.building import Buildable
from pds_kernels.cache.sharing import place

from warming.shapes import UPSTREAM, Stage, five, gemms

STAGES = 4
ROLES = ("prefill", "decode")
ARCH = 90


@dataclass(frozen=True, slots=True)
class Pod:
    """One stage of one group."""

    name: str
    stage: Stage
    config: EngineConfig
    begin: Fraction
    """Where in its list of keys it begins."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a pod is to have compiled, by name."""

    plan: Mapping[str, Buildable]
    """What the engine's plan lists."""
    gemms: Mapping[str, Mapping[str, Buildable]]
    """DeepGEMM's kernels, for each set of numbers of tokens."""

    def artefacts(self, counts: str) -> dict[str, Buildable]:
        """All, with the GEMMs of the set `counts`."""
        return {**self.plan, **self.gemms[counts]}

    def others(self) -> dict[str, Buildable]:
        """What is not among ours."""
        ours = self.artefacts("ours")
        every = {name: each for kernels in self.gemms.values() for name, each in kernels.items()}
        return {name: each for name, each in every.items() if name not in ours}


def pods(model: dict[str, Any], name: str, folder: Path, roles: Sequence[str]) -> tuple[Pod, ...]:
    """Those of `roles`, stage by stage. `folder` gets the model's config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model))
    found = []
    for role in roles:
        for index in range(STAGES):
            config = EngineConfig.model_validate(
                {
                    "model": {"path": folder, "name": name},
                    "role": role,
                    "max_model_len": 16384,
                    "parallelism": {"pp": STAGES},
                    "cache": {"path": folder, "target": f"sm_{ARCH}"},
                    "kv": {"page_size": 64},
                    "pod": {"index": index, "group": f"{name}-{role[0]}-0-0"},
                }
            )
            mine = part(read_spec(folder), config.parallelism, index)
            dense = mine.layers.start < model.get("first_k_dense_replace", 0)
            begin = place(index, STAGES, config.pod.group)
            found.append(Pod(f"{role}-{index}", Stage(dense, role == "decode"), config, begin))
    return tuple(found)


def longest(config: EngineConfig) -> int:
    """Tokens of a step at most."""
    settings = config.scheduler
    return settings.max_step_tokens or settings.chunk_size + settings.max_running


def sets(config: EngineConfig, sms: int, every: Sequence[int]) -> dict[str, Sequence[int]]:
    """Numbers of tokens: upstream's old ones, all that a step of this engine may have, and ours."""
    return {"all": every, "step": range(1, longest(config) + 1), "ours": five(sms)}


def wanted(
    model: dict[str, Any], of: Sequence[Pod], sms: int, every: Sequence[int] = UPSTREAM
) -> tuple[list[Wanted], float]:
    """What each of the pods is to have compiled; and of the GEMMs that a step of this engine may
    have, the part whose kernels are among ours. DeepGEMM is asked once, for all pods."""
    targets.SMS[ARCH] = sms  # the plan takes a GPU that is not there from this table
    counts = sets(of[0].config, sms, every)
    calls = {
        (pod.stage, name): tuple(gemms(model, pod.stage, counts[name]))
        for pod in of
        for name in counts
    }
    asked = tuple(dict.fromkeys(gemm for each in calls.values() for gemm in each))
    planned = deep_gemm.plan(asked, targets.gpu(f"sm_{ARCH}")) if asked else ()
    kernel = {each.gemm: each.kernel for each in planned}
    ours = {kernel[gemm] for (_, name), each in calls.items() if name == "ours" for gemm in each}
    steps = {gemm for (_, name), each in calls.items() if name == "step" for gemm in each}
    served = sum(kernel[gemm] in ours for gemm in steps) / len(steps) if steps else 1.0
    return [
        Wanted(
            {each.name: each for each in plan(pod.config).wanted},
            {
                name: {kernel[gemm].name: kernel[gemm] for gemm in calls[pod.stage, name]}
                for name in counts
            },
        )
        for pod in of
    ], served
