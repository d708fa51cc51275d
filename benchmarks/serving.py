"""Prefill and decode on a core each, ours beside vLLM's, and one unified engine of each.

    python benchmarks/serving.py [--quick] [--systems ours-pd vllm-pd ours vllm] [--rates 0.5 1 …]

Four systems serve the same model (57.9 million random parameters, Qwen3's shape) on two cores, one
after another, and are asked by the same client:

- `ours-pd`: a prefill and a decode group, a core each, and our router.
- `vllm-pd`: the same of vLLM's, which pass pages by NIXL, behind a proxy that does what vLLM's
  guide says and nothing else.
- `ours`, `vllm`: one unified engine on both cores.

All compute prompts in chunks of 512 tokens. The trace is open-loop and always the same: requests
come at random (Poisson), one in four has a long prompt (1,024 to 2,048 tokens, 16 to 48 tokens of
answer), the others a short one (32 to 256, 48 to 128). It is played at several rates.

A request counts if its first token came within 1 s and the 99th percentile of its gaps is at most
100 ms: a reader waits no longer for a chat's first word, and ten tokens a second are as fast as one
reads. `goodput` of a system is the most requests a second that count, over the rates; where fewer
than half as many count, higher rates are left out. `value` is that of ours-pd, `ratio` over
vllm-pd's (aim: 1.5). `gap_ratio` is the p99 of the gaps of ours-pd over those of ours, at the rate
at which ours has its goodput (aim: 0.5 at the most).

vLLM is installed by the run, as by cpu_engine.py. --quick takes a tiny model, our systems alone
unless --systems names others, and one short trace.
"""

import argparse
import asyncio
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from common import doing, end_on_sigterm, say
from comparing import machine, models, servers
from comparing.client import together
from comparing.engines import Sizes
from comparing.figures import rounded
from comparing.peers import CACHE, VLLM, NotInstalled, install
from comparing.traces import Kind, Objective, judged, middle, play, poisson

Serve = Callable[[Path, Sizes, Path], AbstractContextManager[str]]
SYSTEMS: dict[str, Serve] = {
    "ours-pd": servers.ours_pair,
    "vllm-pd": servers.vllm_pair,
    "ours": servers.ours,
    "vllm": servers.vllm,
}
OBJECTIVE = Objective(first=1.0, gap=0.1)
KINDS = (Kind(0.75, (32, 256), (48, 128)), Kind(0.25, (1024, 2048), (16, 48)))
FULL = Sizes(prompt=2048, prompts=(1,), batches=(32,), context=256, steps=64, chunk=512)
QUICK_KINDS = (Kind(0.75, (8, 32), (4, 16)), Kind(0.25, (128, 256), (4, 8)))
QUICK = Sizes(
    prompt=256, prompts=(1,), batches=(16,), context=32, steps=8, chunk=64, compiled=False
)
RATES = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
SECONDS, QUICK_SECONDS, MAKING_SECONDS = 60.0, 4.0, 600.0
GRACE_SECONDS = 30.0
"""After the last request has come, for all to be answered. What is not counts as failed."""
By = dict[str, dict[float, list[dict[str, float]]]]
"""By system and rate, what each round was like."""


def available(wanted: list[str], missing: dict[str, str]) -> list[str]:
    """Those that can run here."""
    if not any(name.startswith("vllm") for name in wanted):
        return wanted
    try:
        install(VLLM)
    except NotInstalled as error:
        say(f"without vLLM: {error}")
        missing["vllm"] = str(error)
        return [name for name in wanted if not name.startswith("vllm")]
    return wanted


def measured(name: str, options: argparse.Namespace, model: Path) -> dict[float, dict[str, float]]:
    """One system from its start to its end, by rate.

    Raises:
        RuntimeError: it did not start, or answers nothing.
    """
    shape, sizes, kinds = options.shape, options.sizes, options.kinds
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        try:
            with SYSTEMS[name](model, sizes, folder) as url:
                asyncio.run(warm(url, shape, kinds))
                for rate in options.rates:
                    trace = poisson(rate, options.seconds, kinds, shape.vocab)
                    what = f"{name}: {len(trace)} requests, {rate:g} a second"
                    until = options.seconds + GRACE_SECONDS
                    with doing(what, until + GRACE_SECONDS):
                        answers = asyncio.run(play(url, trace, until))
                    found[rate] = judged(answers, options.seconds, OBJECTIVE)
                    say(f"{name}: {found[rate]}")
                    if found[rate]["goodput"] <= goodput(found)[0] / 2:
                        break
        except (SystemExit, RuntimeError) as error:
            servers.keep_logs(folder, CACHE / "logs" / name)
            raise RuntimeError(f"{name}: {error}") from error
    return found


async def warm(url: str, shape: models.Shape, kinds: tuple[Kind, ...]) -> None:
    """Each kind of request, alone and several at once."""
    requests = poisson(4.0, 4.0, kinds, shape.vocab)[:8]
    for request in requests:
        await together(url, [request.prompt], request.tokens)
    await together(url, [request.prompt for request in requests], 16)


def goodput(rates: dict[float, dict[str, float]]) -> tuple[float, float]:
    """The most requests a second that count, and the rate of the trace at which they did."""
    best = max(rates, key=lambda rate: (rates[rate]["goodput"], -rate))
    return rates[best]["goodput"], best


def compared(by: dict[str, dict[float, dict[str, float]]]) -> dict[str, Any]:
    """What is reported of figures by system and rate."""
    best = {name: goodput(rates) for name, rates in by.items()}
    told: dict[str, Any] = {"value": None, "baseline": None, "ratio": None, "gap_ratio": None}
    if "ours-pd" in best:
        told["value"] = rounded(best["ours-pd"][0])
    if "vllm-pd" in best:
        told["baseline"] = rounded(best["vllm-pd"][0])
    if told["value"] is not None and told["baseline"]:
        told["ratio"] = round(best["ours-pd"][0] / best["vllm-pd"][0], 3)
    if "ours-pd" in best and "ours" in best:
        rate = best["ours"][1]
        pair, unified = (by[name].get(rate, {}).get("gap_p99_ms") for name in ("ours-pd", "ours"))
        told["gap_ratio"] = round(pair / unified, 3) if pair and unified else None
    told["goodput"] = {name: rounded(each) for name, (each, _) in best.items()}
    return told


def report(options: argparse.Namespace) -> dict[str, Any]:
    before = machine.described()
    missing: dict[str, str] = {}
    names = available(options.systems, missing)
    with doing(f"making {options.shape.name}", MAKING_SECONDS):
        model = models.make(options.shape, CACHE / "models")
    raw: By = {}
    for number in range(options.rounds):
        for name in [each for each in names if each not in missing]:
            say(f"round {number + 1} of {options.rounds}: {name}")
            try:
                found = measured(name, options, model)
            except RuntimeError as error:
                say(f"without {error}")
                missing[name] = str(error)[-800:]
                raw.pop(name, None)
                continue
            for rate, each in found.items():
                raw.setdefault(name, {}).setdefault(rate, []).append(each)
    by = {
        name: {rate: middle(rounds) for rate, rounds in rates.items()}
        for name, rates in raw.items()
    }
    return {
        "name": "serving",
        "unit": "requests/s",
        "better": "higher",
        **compared(by),
        "objective": {"ttft_s": OBJECTIVE.first, "gap_p99_s": OBJECTIVE.gap},
        **before,
        "missing": missing,
        "by_system": {
            name: {
                rate: {figure: rounded(value) for figure, value in each.items()}
                for rate, each in rates.items()
            }
            for name, rates in by.items()
        },
        "raw": raw,
        "load_after": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny model, within a minute")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS))
    parser.add_argument("--rates", nargs="+", type=float, help="requests a second")
    parser.add_argument("--rounds", type=int, help="of all systems [2; --quick: 1]")
    options = parser.parse_args()
    options.shape = models.TINY if options.quick else models.DENSE
    options.sizes, options.kinds = (QUICK, QUICK_KINDS) if options.quick else (FULL, KINDS)
    options.seconds = QUICK_SECONDS if options.quick else SECONDS
    options.systems = options.systems or (["ours-pd", "ours"] if options.quick else list(SYSTEMS))
    options.rates = options.rates or ((4.0,) if options.quick else RATES)
    options.rounds = options.rounds or (1 if options.quick else 2)
    end_on_sigterm()
    print(json.dumps(report(options)))


if __name__ == "__main__":
    main()
