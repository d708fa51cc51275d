"""A worker's process for a GPU that is not there (test_found_ahead.py): it prepares its kernels, as
before it says Hello, and then asks Triton for what steps of odd sizes launch.

In place of the GPU's driver stands ours, which names the target. Last it asks for a kernel that no
warm-up has compiled. It prints how many artefacts it compiled and reused in preparation, how many
kernels it then asked for, and how many of those it counts as compiled.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from pds_engine.artefacts import launches as found_by_running
from pds_engine.artefacts.plan import target
from pds_engine.config import EngineConfig
from pds_engine.models.registry import check
from pds_engine.parallel.layout import part
from pds_engine.runner.shape_plan import WarmStep
from pds_engine.worker.kernels import prepare
from pds_kernels.builders import triton as builder
from pds_kernels.building import builds
from pds_kernels.launching import Launch
from pds_kernels.targets import Gpu
from witness import tell_of_triton

ODD = [WarmStep(kind, tokens) for kind in ("decode", "extend") for tokens in (1, 3, 17, 300, 5000)]
"""No sizes of the plan, but for 1."""


def launched(config: EngineConfig, gpu: Gpu) -> tuple[Launch, ...]:
    """By each rank of the pod, in steps of odd sizes."""
    found_by_running.steps = lambda role, counts: ODD
    spec, split = check(config), config.parallelism
    mine = [part(spec, split, rank, config.role) for rank in range(split.ranks_per_pod)]
    all_ = [each for one in mine for each in found_by_running.launches(config, spec, one, gpu)]
    return tuple(dict.fromkeys(all_))


def unplanned(launch: Launch) -> Launch:
    """Another variant of a kernel."""
    constants = dict(launch.constants)
    constants["num_warps"] *= 2
    return replace(launch, constants=tuple(sorted(constants.items())))


def main(tree: str) -> None:
    config = EngineConfig.model_validate_json(tree)
    kernels, gpu = prepare(config), target(config)
    if kernels is None or gpu is None:
        raise RuntimeError("nothing was prepared")
    tell_of_triton(Path(os.environ["PDS_WITNESS"]))
    before, asked = builds(), launched(config, gpu)
    norm = next(each for each in asked if each.function == "norm_rows")
    asked += (unplanned(norm),)
    with builder._pretending(gpu):
        for launch in asked:
            kernel = builder._function(launch)
            kernel.device_caches.clear()
            builder._warm(kernel, launch)
    proof = kernels.proof
    print(json.dumps([proof.compiled, proof.reused, len(asked), builds() - before]))


if __name__ == "__main__":
    main(*sys.argv[1:])
