"""Our engine on a CPU beside vLLM, llama.cpp and mistral.rs: the same random weights, one run.

    python benchmarks/cpu_engine.py [--quick] [--engines ours vllm …] [--no-http] [--rounds N]

Two models, both in bfloat16: one of Qwen3's shape (57.9 million parameters), and a mixture of
Qwen3-MoE's. Each engine is measured by its own best path, in a process of its own, which is stopped
while another is measured; then ours and vLLM over HTTP, by one and the same client. Rounds go from
engine to engine, and the figures are medians over them:

- `prefill_1`, `prefill_8`: tokens per second of prompts of 2,048 tokens, one and eight at once.
- `decode_1`, `decode_8`, `decode_32`: ms a decode step, at so many requests.

`value` is our ms a step at B = 1. `ratio` is the smallest, over prefill and B = 8, 32 of both
models, of the best peer's time over ours (aim: 1.2). `bandwidth_share`: of the bytes a second that
a C loop on all cores reads in this run, those of the weights that a step at B = 1 reads (aim: 0.9).
`product_share`: of the rate of torch's product in bfloat16, that of a prefill (matrices and causal
attention; aim: 0.85, where `ratio` is less than 1.2).
`same_tokens`: after how many of 8 prompts an engine has the token that ours has; in bfloat16, the
likeliest of random weights may differ now and then.

Peers are installed by the run, each in an environment of its own in the user's cache
(`~/.cache/pdserving/bench`, 7 GB in all); llama.cpp is compiled there, which takes some minutes.
One that cannot be installed, or that fails, is named in `missing`. --quick takes tiny models,
compiles nothing ahead, and has of the peers those that are there already and load in a moment: not
vLLM, unless --engines names it.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from common import doing, end_on_sigterm, say
from comparing import figures, machine, models, servers
from comparing.client import prefill_seconds, step_seconds, together
from comparing.engines import NAMES, Sizes, session
from comparing.peers import CACHE, PEERS, NotInstalled, install
from comparing.sessions import Failed, Prompts, Session

FULL = Sizes(prompt=2048, prompts=(1, 8), batches=(1, 8, 32), context=128, steps=64)
QUICK = Sizes(prompt=64, prompts=(1, 8), batches=(1, 8, 32), context=8, steps=4, compiled=False)
LOAD_SECONDS, ASK_SECONDS = 1800.0, 600.0
OVER_HTTP = {"ours": servers.ours, "vllm": servers.vllm}


class Figures(dict[str, dict[str, list[float]]]):
    """By engine and figure, one number a round; and why an engine has none.

    `first`: by engine, the first token of some prompts that all engines are asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.missing: dict[str, str] = {}
        self.first: dict[str, list[int]] = {}

    def add(self, engine: str, name: str, value: float) -> None:
        self.setdefault(engine, {}).setdefault(name, []).append(figures.rounded(value))

    def lacks(self, engine: str, error: Exception) -> None:
        self.missing[engine] = str(error).strip()
        say(f"without {engine}: {self.missing[engine][-600:]}")


class Drawn:
    """Prompts that no engine has seen before."""

    def __init__(self, vocab: int) -> None:
        self._random, self._vocab = random.Random(0), vocab

    def prompts(self, count: int, length: int) -> Prompts:
        return [
            [self._random.randrange(3, self._vocab) for _ in range(length)] for _ in range(count)
        ]


def available(wanted: list[str], quick: bool, found: Figures) -> list[str]:
    """Those of `wanted` that can run here; peers are installed, unless it has to be quick."""
    kept = []
    for name in wanted:
        if name in PEERS and quick and not PEERS[name].installed:
            found.lacks(name, NotInstalled("not installed yet: a run without --quick does it"))
            continue
        try:
            if name in PEERS:
                install(PEERS[name])
            kept.append(name)
        except NotInstalled as error:
            found.lacks(name, error)
    return kept


@contextmanager
def loaded(
    names: list[str], shape: models.Shape, model: Path, sizes: Sizes, found: Figures
) -> Iterator[list[Session]]:
    """Sessions of the engines that load this model."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = []
        for name in names:
            with doing(f"{name} loads {shape.name}", LOAD_SECONDS):
                try:
                    each = session(name, shape, model, sizes, folder)
                    stack.callback(each.end)
                    seconds = each.loaded(LOAD_SECONDS)
                except (NotInstalled, OSError, Failed) as error:
                    found.lacks(name, error)
                    continue
            say(f"{name}: loaded in {seconds:.1f} s")
            started.append(each)
        yield started


def in_process(
    names: list[str], shape: models.Shape, model: Path, sizes: Sizes, rounds: int
) -> Figures:
    """By engine: all figures, in `rounds` rounds after one to warm up."""
    found, drawn = Figures(), Drawn(shape.vocab)
    compared = drawn.prompts(8, sizes.context)
    with loaded(names, shape, model, sizes, found) as started:
        for number in range(rounds + 1):
            for each in list(started):
                what = f"{shape.name}, round {number} of {rounds}: {each.name}"
                with doing(what, 2 * ASK_SECONDS):
                    try:
                        if not number:
                            found.first[each.name] = each.first(compared, ASK_SECONDS)
                        measured = dict(asked(each, sizes, drawn))
                    except Failed as error:
                        found.lacks(each.name, error)
                        started.remove(each)
                        continue
                for name, value in measured.items() if number else ():
                    found.add(each.name, name, value)
    return found


def asked(each: Session, sizes: Sizes, drawn: Drawn) -> Iterator[tuple[str, float]]:
    """One round of one engine."""
    for count in sizes.prompts:
        prompts = drawn.prompts(count, sizes.prompt)
        yield f"prefill_{count}", count * sizes.prompt / each.prefill(prompts, ASK_SECONDS)
    for batch in sizes.batches:
        prompts = drawn.prompts(batch, sizes.context)
        steps = each.decode(prompts, sizes.steps, ASK_SECONDS)
        if not steps:
            raise Failed(f"{each.name}: no step with {batch} requests at once")
        yield f"decode_{batch}", 1000 * statistics.median(steps)


def over_http(
    names: list[str], shape: models.Shape, model: Path, sizes: Sizes, rounds: int
) -> Figures:
    """The same figures, by a client: both servers are up, and are asked in turn."""
    found, drawn = Figures(), Drawn(shape.vocab)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = {}
        for name in names:
            try:
                server = OVER_HTTP[name](model, sizes, folder)
                urls[name] = stack.enter_context(server)
            except SystemExit as error:
                found.lacks(name, Failed(str(error)))
        for number in range(rounds + 1):
            for name, url in list(urls.items()):
                what = f"{shape.name} over HTTP, round {number} of {rounds}: {name}"
                with doing(what, 2 * ASK_SECONDS):
                    try:
                        measured = asyncio.run(streamed(url, sizes, drawn))
                    except RuntimeError as error:
                        found.lacks(name, error)
                        del urls[name]
                        continue
                for figure, value in measured.items() if number else ():
                    found.add(name, figure, value)
    return found


async def streamed(url: str, sizes: Sizes, drawn: Drawn) -> dict[str, float]:
    """One round of one server."""
    await together(
        url, drawn.prompts(1, sizes.prompt), 1
    )  # threads of the other one may still spin
    measured = {}
    for count in sizes.prompts:
        answers = await together(url, drawn.prompts(count, sizes.prompt), 1)
        measured[f"prefill_{count}"] = count * sizes.prompt / prefill_seconds(answers)
    for batch in sizes.batches:
        answers = await together(url, drawn.prompts(batch, sizes.context), 2 * sizes.steps)
        measured[f"decode_{batch}"] = 1000 * step_seconds(answers)
    return measured


def summary(found: Figures) -> dict[str, Any]:
    """Of one model and one way to ask: medians, ratios, raw figures, who is missing and why."""
    medians = figures.medians(found)
    return {
        "medians": medians,
        "ratios": {name: figures.rounded(each) for name, each in figures.ratios(medians).items()},
        "raw": found,
        "missing": found.missing,
        "same_tokens": {name: figures.same(found.first, name) for name in found.first},
    }


@dataclass(frozen=True, slots=True)
class Limits:
    """What the machine does at best: bytes read and operations of a product, a second."""

    read: float
    product: float

    @classmethod
    def measured(cls, quick: bool) -> Self:
        size = machine.FEW_BYTES if quick else machine.READ_BYTES
        with doing("reading memory, multiplying matrices", ASK_SECONDS):
            return cls(machine.read_bandwidth(size), machine.product_rate())

    def shares(
        self, shape: models.Shape, sizes: Sizes, medians: figures.Medians
    ) -> dict[str, dict[str, float]]:
        """Of it, what each engine does."""
        steps = {name: found["decode_1"] for name, found in medians.items() if "decode_1" in found}
        speeds = {
            name: found["prefill_1"] for name, found in medians.items() if "prefill_1" in found
        }
        return {
            "bandwidth_share": {
                name: figures.rounded(figures.bandwidth_share(shape, ms, self.read), 3)
                for name, ms in steps.items()
            },
            "product_share": {
                name: figures.rounded(
                    figures.product_share(shape, sizes.prompt, speed, self.product), 3
                )
                for name, speed in speeds.items()
            },
        }


def report(options: argparse.Namespace) -> dict[str, Any]:
    sizes = QUICK if options.quick else FULL
    shapes = [models.TINY, models.TINY_MIXTURE] if options.quick else [models.DENSE, models.MIXTURE]
    told = {**machine.described(), "compiled": sizes.compiled}
    limits, absent = Limits.measured(options.quick), Figures()
    names = available(options.engines, options.quick, absent)
    by_model: dict[str, dict[str, Any]] = {}
    for shape in shapes:
        with doing(f"making {shape.name}", ASK_SECONDS):
            model = models.make(shape, CACHE / "models")
        part = summary(in_process(names, shape, model, sizes, options.rounds))
        part |= limits.shares(shape, sizes, part["medians"])
        if options.http and (shape is shapes[0] or not options.quick):
            asked_over = [name for name in names if name in OVER_HTTP]
            part["http"] = summary(over_http(asked_over, shape, model, sizes, options.rounds))
        by_model[shape.name] = part
    first = by_model[shapes[0].name]
    best = figures.best_peer(first["medians"], "decode_1")
    return {
        "name": "cpu_engine",
        "value": first["medians"].get("ours", {}).get("decode_1"),
        "unit": "ms a step",
        "better": "lower",
        "baseline": best and best[1],
        "ratio": figures.smallest(part["ratios"] for part in by_model.values())
        if sizes.compiled
        else None,
        **told,
        "read_gb_per_s": round(limits.read / 1e9, 2),
        "product_tflops": round(limits.product / 1e12, 3),
        "bandwidth_share": first["bandwidth_share"].get("ours"),
        "http_ratio": figures.smallest(
            part["http"]["ratios"] for part in by_model.values() if "http" in part
        ),
        "missing": absent.missing,
        "versions": {name: PEERS[name].packages for name in names if name in PEERS},
        "models": by_model,
        "load_after": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick",
        action="store_true",
        help="tiny models in plain torch, to see that all runs: no ratio",
    )
    parser.add_argument("--engines", nargs="+", choices=NAMES, help="all; --quick: without vllm")
    parser.add_argument("--no-http", dest="http", action="store_false", help="in process alone")
    parser.add_argument("--rounds", type=int, help="rounds that count [5; --quick: 1]")
    options = parser.parse_args()
    swift = [name for name in NAMES if name != "vllm"]
    options.engines = options.engines or (swift if options.quick else list(NAMES))
    options.rounds = options.rounds or (1 if options.quick else 5)
    end_on_sigterm()
    print(json.dumps(report(options)))


if __name__ == "__main__":
    main()
