"""A real checkpoint's size in this machine's memory: Llama-3.2-3B's shape, beside llama.cpp.

    python benchmarks/real_size.py [--quick] [--models DIR] [--keep]

Random weights in bfloat16 (6.4 GB) are written to a folder of the user's cache, or below --models,
as safetensors for ours and once more as GGUF for llama.cpp: 13 GB on the disk, deleted at the end
unless --keep. Each engine loads them in a process of its own, one after the other, first with
nothing of the files in memory (`cold`: the kernel is asked to drop them), then again (`warm`). Each
then answers: a prompt of 512 tokens, and steps at B = 1. At last our whole product serves the model
over HTTP (`serve`).

`value` is our tokens per second at B = 1, `ratio` over llama.cpp's. `load_s`: from the start of the
process until the model can be asked. `peak_gb`: the most memory that the process and its children
had at once, of which `own_gb` is not the mapped file's: what a pod's limit must hold.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import doing, end_on_sigterm, say
from comparing import figures, machine, models, servers
from comparing.client import step_seconds, together
from comparing.engines import Sizes, gguf, session
from comparing.memory import Watch, drop
from comparing.peers import CACHE, LLAMA, NotInstalled, install
from comparing.sessions import Failed

FULL = Sizes(prompt=512, prompts=(1,), batches=(1,), context=64, steps=32, chunk=512)
QUICK = Sizes(prompt=64, prompts=(1,), batches=(1,), context=8, steps=4, chunk=64, compiled=False)
LOAD_SECONDS, ASK_SECONDS, MAKE_SECONDS = 1800.0, 900.0, 1800.0
PROMPT = 7
"""The token that prompts are made of: engines that cache prefixes have that switched off."""


def in_process(name: str, model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Load, ask, end.

    Raises:
        Failed, NotInstalled, OSError: it cannot be measured here.
    """
    sizes = options.sizes
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        each = session(name, options.shape, model, sizes, Path(folder))
        try:
            with Watch(each.pid) as memory:
                with doing(f"{name} loads {options.shape.name}", LOAD_SECONDS):
                    each.loaded(LOAD_SECONDS)
                loaded = time.monotonic() - begun
                with doing(f"{name} answers", 2 * ASK_SECONDS):
                    prompt = [[PROMPT] * sizes.prompt]
                    first = each.prefill(prompt, ASK_SECONDS)
                    seconds = each.prefill(prompt, ASK_SECONDS)
                    steps = each.decode([[PROMPT] * sizes.context], sizes.steps, ASK_SECONDS)
        finally:
            each.end()
    step = statistics.median(steps)
    return {
        "load_s": figures.rounded(loaded),
        "first_prefill_s": figures.rounded(first),
        "prefill_tok_per_s": figures.rounded(sizes.prompt / seconds),
        "tok_per_s": figures.rounded(1 / step),
        **memory.told(),
    }


def over_http(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Our engine with all its processes, from its start to its answer."""
    sizes = options.sizes
    with tempfile.TemporaryDirectory() as folder, Watch(os.getpid()) as memory:
        begun = time.monotonic()
        with servers.ours(model, sizes, Path(folder)) as url:
            ready = time.monotonic() - begun
            with doing("ours answers over HTTP", ASK_SECONDS):
                prompts = [[PROMPT] * sizes.context]
                answers = asyncio.run(together(url, prompts, 2 * sizes.steps))
    return {
        "ready_s": figures.rounded(ready),
        "tok_per_s": figures.rounded(1 / step_seconds(answers)),
        **memory.told(),
    }


@contextmanager
def made(options: argparse.Namespace) -> Iterator[Path]:
    """The model's folder; deleted at the end, unless it is to be kept."""
    model = options.models / options.shape.name
    there = (model / models.DONE).exists()
    need = 2 * 2 * options.shape.parameters + (1 << 30)
    options.models.mkdir(parents=True, exist_ok=True)
    if not there and shutil.disk_usage(options.models).free < need:
        raise SystemExit(
            f"error: {options.models} has no room for {need >> 30} GiB: name another by --models"
        )
    try:
        with doing(f"writing {options.shape.name} to {options.models}", MAKE_SECONDS):
            models.make(options.shape, options.models)
        yield model
    finally:
        if not options.keep and not there:
            shutil.rmtree(model, ignore_errors=True)


def report(options: argparse.Namespace) -> dict[str, Any]:
    before, missing = machine.described(), {}
    names = ["ours", "llama.cpp"]
    try:
        if options.quick and not LLAMA.installed:
            raise NotInstalled("not installed yet: a run without --quick does it")
        install(LLAMA)
    except NotInstalled as error:
        say(f"without llama.cpp: {error}")
        missing["llama.cpp"] = str(error)
        names.remove("llama.cpp")
    found: dict[str, dict[str, Any]] = {}
    with made(options) as model:
        for name in names:
            try:
                if name == "llama.cpp":
                    with doing("writing the GGUF file", MAKE_SECONDS):
                        gguf(model)
                drop(model)
                found[name] = {"cold": in_process(name, model, options)}
                found[name]["warm"] = in_process(name, model, options)
            except (Failed, NotInstalled, OSError) as error:
                say(f"without {name}: {error}")
                missing[name] = str(error)[-800:]
        drop(model)
        found.setdefault("ours", {})["serve"] = over_http(model, options)
    speed = {name: each["warm"]["tok_per_s"] for name, each in found.items() if "warm" in each}
    ours, theirs = speed.get("ours"), speed.get("llama.cpp")
    bandwidth = machine.read_bandwidth(machine.FEW_BYTES if options.quick else machine.READ_BYTES)
    return {
        "name": "real_size",
        "value": ours,
        "unit": "tokens/s",
        "better": "higher",
        "baseline": theirs,
        "ratio": figures.rounded(ours / theirs) if ours and theirs else None,
        **before,
        "parameters": options.shape.parameters,
        "weights_gb": round(2 * options.shape.parameters / 1e9, 2),
        "read_gb_per_s": round(bandwidth / 1e9, 2),
        "bandwidth_share": {
            name: figures.rounded(figures.bandwidth_share(options.shape, 1000 / each, bandwidth))
            for name, each in speed.items()
        },
        "engines": found,
        "missing": missing,
        "load_after": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, within a minute")
    parser.add_argument(
        "--models", type=Path, default=CACHE / "models", help=f"a folder [{CACHE / 'models'}]"
    )
    parser.add_argument("--keep", action="store_true", help="do not delete what was written")
    options = parser.parse_args()
    options.shape = models.TINY_LLAMA if options.quick else models.LLAMA_3B
    options.sizes = QUICK if options.quick else FULL
    end_on_sigterm()
    print(json.dumps(report(options)))


if __name__ == "__main__":
    main()
