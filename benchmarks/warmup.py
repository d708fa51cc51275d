"""How much sooner a pipeline has its kernels when all stages compile at once, and fewer shapes.

    python benchmarks/warmup.py [--quick] [--sms N]

A PDServing of two groups (prefill and decode) of four stages, two compilers a pod, one volume, for
sm_90 and without a GPU: Triton's kernels of the engine's plan, DeepGEMM's by nvcc, and Triton's
launcher by gcc. Models are config.json alone. Eight processes warm up together for real, on this
machine's cores: cold, where each key must be built once, and warm. One more builds what other
numbers of tokens find. The CPU seconds of each build are noted. What they would take when every pod
had two cores of its own follows in virtual time: the pods' own queues decide who builds what.

`value`: the longest chain of builds, in CPU seconds, when all stages compile the engine's plan at
once. `ratio`: that of one stage after another, with all that upstream compiled (1 to 16,384
tokens), over it; both share one volume. `less_cold` and `less_warm` say the same as parts.

Differing in one thing: `shapes_ratio` (1 to 16,384 tokens over the engine's plan), `stages_ratio`
(one stage after another over all at once), `dedup_ratio` (builds without sharing over those with).
The plan has DeepGEMM's kernels for every number of tokens that a step may have; upstream has five
numbers since #26567 (`five_ratio`), which find the kernels of the part `served` of those calls.
Names that begin with whole: with what every pod does by itself (imports, plan), which nothing here
saves.

--quick: Qwen's shape alone; it has no GEMMs in FP8, so that all shapes are ours.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import doing, say
from pds_engine.artefacts.plan import plan
from warming.building import Ran, together
from warming.figures import (
    EVERY,
    FIVE,
    OURS,
    Begin,
    Group,
    by_compiler,
    chains,
    figures,
    per_key,
    table,
)
from warming.models import DEEPSEEK, QWEN
from warming.pods import ROLES, STAGES, compile_for, pods, wanted
from warming.replay import makespan

WORKERS = 2
PRELOAD = "import pds_engine.warmup"
"""What the compile processes of a pod are forked from."""
FURTHER = ("builds_per_key", "warm_ratio", "shapes_ratio", "stages_ratio", "dedup_ratio")
MODELS = {"deepseek-v3": DEEPSEEK, "qwen3-30b-a3b": QWEN}


def seconds(*words: str) -> float:
    """CPU seconds of a Python process and of those that it starts."""
    before = os.times()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return (
        after.children_user
        + after.children_system
        - (before.children_user + before.children_system)
    )


def begun(name: str, folder: Path) -> None:
    """What a pod does before it compiles, of the decode group's first stage."""
    config = pods(MODELS[name], name, folder)[STAGES].config
    for each in plan(config).wanted:
        each.key_inputs()


def measured(name: str, sms: int, folder: Path) -> dict[str, Any]:
    """All figures of one model."""
    with doing(f"{name}: what is to be compiled", 3600):
        of = pods(MODELS[name], name, folder / "model")
        wants, served = wanted(of)
    with doing(f"{name}: what each pod does by itself", 3600):
        words = ("--begin", name, "--sms", str(sms), "--folder", str(folder / "begin"))
        alone = seconds(__file__, *words), seconds("-c", PRELOAD)
    begins, ours = [pod.begin for pod in of], [each.ours for each in wants]
    names = [pod.name for pod in of]
    with doing(f"{name}: {len(of)} processes begin together, cold", 3600):
        cold = together(folder, dict(zip(names, ours, strict=True)), begins)
    with doing(f"{name}: {len(of)} processes begin together, warm", 3600):
        again = [f"{each}-again" for each in names]
        warm = together(folder, dict(zip(again, ours, strict=True)), begins, warm=True)
    built = {each.name for each in cold.builds}
    rest = {key: it for each in wants for key, it in each.every.items() if key not in built}
    builds = cold.builds
    if rest:
        with doing(f"{name}: the {len(rest)} kernels of other numbers of tokens", 3600):
            builds += together(folder, {"rest": rest}, begins[:1]).builds
    keys = {
        EVERY: [tuple(each.every) for each in wants],
        OURS: [tuple(each.ours) for each in wants],
        FIVE: [tuple(each.five) for each in wants],
    }
    group = Group(keys, begins, STAGES, WORKERS)
    found = chains(group, {each.name: each.cpu for each in builds})
    begin = Begin(*alone, find=max(warm.cpu))
    print(f"\n{name}, sm_90 with {sms} multiprocessors, {len(of)} pods of {WORKERS} compilers")
    print(table(found, begin), flush=True)
    figure = {
        **figures(found, begin),
        "served": round(served, 3),
        "by_compiler": by_compiler(builds),
        "builds": {way: each.builds for way, each in found.items()},
    }
    return figure | told(begin, cold, warm)


def told(begin: Begin, cold: Ran, warm: Ran) -> dict[str, Any]:
    """What the real processes did."""
    counted = per_key(cold)
    for trouble in (*cold.troubles, *warm.troubles):
        say(f"the folder: {trouble}")
    if (counted["most"], counted["least"]) != (1, 1):
        say(f"error: not every key was built exactly once: {counted}")
    return {
        "builds_per_key": counted["builds"] / counted["keys"],
        "builds_warm": len(warm.builds),
        "plan_s": round(begin.plan, 2),
        "compilers_s": round(begin.compilers, 2),
        "find_s": round(begin.find, 3),
        "wall_cold_s": round(cold.wall, 1),
        "wall_warm_s": round(warm.wall, 1),
    }


def makespans() -> dict[str, float]:
    """Of 8 pods × 2 compilers on K equal keys, in builds."""
    print(f"\n{'keys':>5} {'builds one after another':>25} {'bound':>6}")
    found = {}
    for count in (1, 15, 16, 17, 33, 62, 128, 200):
        took, bound = makespan(8, 2, count)
        print(f"{count:5d} {took:25.2f} {bound:6d}")
        if took > bound:
            raise SystemExit(f"error: {count} keys took {took:.2f} builds, more than {bound}")
        found[str(count)] = round(took, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="Qwen's shape alone")
    parser.add_argument("--sms", type=int, default=132, help="multiprocessors: 132 H100, 78 H20")
    parser.add_argument("--begin", choices=MODELS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # processes are forked
    compile_for(asked.sms)
    if asked.begin:
        begun(asked.begin, asked.folder)
        return
    names = ["qwen3-30b-a3b"] if asked.quick else list(MODELS)
    started, spans = time.monotonic(), makespans()
    with tempfile.TemporaryDirectory(prefix="pds-warmup-") as made:
        models = {name: measured(name, asked.sms, Path(made) / name) for name in names}
    first = models[names[0]]
    once = all(each["builds_per_key"] == 1 and not each["builds_warm"] for each in models.values())
    print(
        json.dumps(
            {
                "name": "warmup",
                "value": first["value"],
                "unit": "s",
                "better": "lower",
                "baseline": first["baseline"],
                "ratio": first["ratio"],
                **{name: first[name] for name in FURTHER},
                "machine": f"{os.cpu_count()} cores, {platform.machine()}",
                "sms": asked.sms,
                "pods": STAGES * len(ROLES),
                "makespan_builds": spans,
                "wall_s": round(time.monotonic() - started, 1),
                "models": models,
            }
        )
    )
    sys.exit(not once)


if __name__ == "__main__":
    main()
