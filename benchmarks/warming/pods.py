"""The pods of a PDServing of two groups (prefill and decode), and what each is to have compiled."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pds_engine.artefacts.launches import launched
from pds_engine.artefacts.plan import plan
from pds_engine.config import EngineConfig
from pds_engine.models.registry import check
from pds_engine.parallel.layout import part
from pds_engine.runner.shape_plan import most_tokens, token_counts
from pds_kernels import targets
from pds_kernels.builders import deep_gemm
from pds_kernels.builders.deep_gemm import DeepGemmKernel, Gemm
from pds_kernels.building import Buildable
from pds_kernels.cache.sharing import place

STAGES = 4
ROLES = ("prefill", "decode")
UPSTREAM = 16384
"""Numbers of tokens that were compiled before sglang #26567, from 1 on."""
_TARGET = "sm_90"


@dataclass(frozen=True, slots=True)
class Pod:
    """One stage of one group."""

    name: str
    config: EngineConfig
    begin: Fraction
    """Where in its list of keys it begins."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one pod is to have compiled, by name. They differ in DeepGEMM's kernels alone."""

    every: Mapping[str, Buildable]
    """For all numbers of tokens that upstream compiled."""
    ours: Mapping[str, Buildable]
    """The engine's plan: for all that a step may have."""
    five: Mapping[str, Buildable]
    """For upstream's five since #26567."""


def pods(model: dict[str, Any], name: str, folder: Path) -> tuple[Pod, ...]:
    """All of them, group by group and stage by stage. `folder` gets the model's config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model))
    return tuple(_pod(name, folder, role, index) for role in ROLES for index in range(STAGES))


def _pod(model: str, folder: Path, role: str, index: int) -> Pod:
    config = EngineConfig.model_validate(
        {
            "model": {"path": folder, "name": model},
            "role": role,
            "max_model_len": UPSTREAM,
            "parallelism": {"pp": STAGES},
            "cache": {"path": folder, "target": _TARGET},
            "kv": {"page_size": 64},
            "pod": {"index": index, "group": f"{model}-{role[0]}-0-0"},
        }
    )
    return Pod(f"{role}-{index}", config, place(index, STAGES, config.pod.group))


def compile_for(sms: int) -> None:
    """Plans are for a GPU of so many multiprocessors: for one that is not there they ask here."""
    targets.SMS[targets.gpu(_TARGET).arch] = sms


def wanted(of: Sequence[Pod]) -> tuple[list[Wanted], float]:
    """What each pod is to have compiled; and the part of the calls of DeepGEMM in the engine's
    steps (by weight and number of tokens, in multiples of 16) whose kernels are among `five`."""
    gpu = targets.gpu(_TARGET)
    weights = [_weights(pod.config) for pod in of]
    distinct = tuple(dict.fromkeys(each for one in weights for each in one))
    every, five = deep_gemm.covering(distinct, UPSTREAM), _five(distinct, gpu.sms)
    planned = deep_gemm.plan([*every, *five], gpu) if distinct else ()
    kernel = {each.gemm: each.kernel for each in planned}
    few = {kernel[gemm] for gemm in five}
    steps = deep_gemm.covering(distinct, most_tokens(of[0].config))
    served = sum(kernel[gemm] in few for gemm in steps) / len(steps) if steps else 1.0
    found = []
    for pod, one in zip(of, weights, strict=True):
        ours = {each.name: each for each in plan(pod.config).wanted}
        others = {name: it for name, it in ours.items() if not isinstance(it, DeepGemmKernel)}
        all_counts = [kernel[gemm] for gemm in deep_gemm.covering(one, UPSTREAM)]
        five_counts = [kernel[gemm] for gemm in _five(one, gpu.sms)]
        found.append(
            Wanted(
                every=ours | {each.name: each for each in all_counts},
                ours=ours,
                five=others | {each.name: each for each in five_counts},
            )
        )
    return found, served


def _weights(config: EngineConfig) -> tuple[Gemm, ...]:
    """A call for each product of the pod's layers that DeepGEMM computes."""
    spec = check(config)
    mine = part(spec, config.parallelism, config.pod.index, config.role)
    return launched(config, spec, mine, targets.gpu(_TARGET)).deep_gemm


def _five(weights: Sequence[Gemm], sms: int) -> tuple[Gemm, ...]:
    sizes = dict.fromkeys((each.n, each.k) for each in weights)
    return tuple(Gemm(m, n, k) for n, k in sizes for m in token_counts(sms))
