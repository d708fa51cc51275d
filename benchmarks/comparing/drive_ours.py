"""Our engine in one process, as a worker sets it up: its runner executes steps planned here.

Greedy, with compiled kernels where the settings say so, on the CPU.
"""

import itertools
import time
from typing import Any

import torch
from drive import Prompts, serve
from pds_engine.config import load as configuration
from pds_engine.messages import Admit, Release, Row, Sampling, StepPlan
from pds_engine.models.loader import load as load_decoder
from pds_engine.runner.runner import Runner
from pds_engine.worker.kernels import prepare
from pds_engine.worker.process import kv_format, make_pool

GREEDY = Sampling(max_tokens=1, temperature=0.0)


class Ours:
    def __init__(self, settings: dict[str, Any]) -> None:
        config = configuration(flags=settings["flags"])
        torch.set_num_threads(config.threads)
        device = torch.device("cpu")
        prepare(config)
        decoder = load_decoder(config, 0, device)
        _, pool = make_pool(config, decoder, kv_format(config, decoder), device)
        layers = [pool.layer(at) for at in range(len(decoder.part.layers))]
        self._runner, self._config = Runner(config, decoder, layers), config
        self._steps, self._gens = itertools.count(), itertools.count()

    def first(self, prompts: Prompts) -> list[int]:
        rows = self._admit(prompts, 1)
        tokens = self._compute(prompts, rows)
        self._release(rows)
        return tokens

    def prefill(self, prompts: Prompts) -> float:
        rows = self._admit(prompts, 1)
        begun = time.perf_counter()
        self._compute(prompts, rows)
        taken = time.perf_counter() - begun
        self._release(rows)
        return taken

    def decode(self, prompts: Prompts, steps: int) -> list[float]:
        rows = self._admit(prompts, steps + 1)
        self._compute(prompts, rows)
        seconds = []
        for step in range(steps):
            now = tuple(
                Row(slot=slot, gen=gen, start=len(prompt) + step, length=1, samples=True)
                for (slot, gen), prompt in zip(rows, prompts, strict=True)
            )
            begun = time.perf_counter()
            self._execute(now)
            seconds.append(time.perf_counter() - begun)
        self._release(rows)
        return seconds

    def _admit(self, prompts: Prompts, more: int) -> list[tuple[int, int]]:
        """Slots and generations of these prompts, each with pages for `more` tokens behind it."""
        page, first, rows = self._config.kv.page_size, 0, []
        for slot, prompt in enumerate(prompts):
            count, gen = -(-(len(prompt) + more) // page), next(self._gens)
            pages = tuple(range(first, first + count))
            first += count
            order = Admit(
                slot=slot, gen=gen, prompt_ids=tuple(prompt), output_ids=(),
                sampling=GREEDY, seed=0, pages=pages,
            )  # fmt: skip
            self._runner.admit(order)
            rows.append((slot, gen))
        return rows

    def _compute(self, prompts: Prompts, rows: list[tuple[int, int]]) -> list[int]:
        """Their tokens in chunks, as many prompts in a step as its tokens hold; what follows."""
        found: list[int] = []
        most = self._config.scheduler.chunk_size
        step: list[Row] = []
        held = 0
        for (slot, gen), prompt in zip(rows, prompts, strict=True):
            start = 0
            while start < len(prompt):
                length = min(most - held, len(prompt) - start)
                last = start + length == len(prompt)
                step.append(Row(slot=slot, gen=gen, start=start, length=length, samples=last))
                start, held = start + length, held + length
                if held == most:
                    found += self._execute(tuple(step))
                    step, held = [], 0
        if step:
            found += self._execute(tuple(step))
        return found

    def _execute(self, rows: tuple[Row, ...]) -> tuple[int, ...]:
        plan = StepPlan(
            step_id=next(self._steps),
            rows=rows,
            expects_output=False,
            depends_on=-1,
            padded_tokens=sum(row.length for row in rows),
        )
        done = self._runner.launch(plan, None).collect()
        return done.tokens if done is not None else ()

    def _release(self, rows: list[tuple[int, int]]) -> None:
        for slot, gen in rows:
            self._runner.release(Release(slot=slot, gen=gen, after_step=-1))


if __name__ == "__main__":
    serve(Ours)
