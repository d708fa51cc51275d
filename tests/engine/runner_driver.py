"""The least scheduler that can drive a Runner by plans, and what transformers computes."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import near_ties
import torch
from pds_engine.config import EngineConfig
from pds_engine.kv.layout import shard
from pds_engine.kv.pool import KvPool
from pds_engine.messages import Admit, Release, Row, Sampling, StepDone, StepPlan, TokenLogprobs
from pds_engine.models.loader import load
from pds_engine.parallel.collectives import ALONE, Collectives
from pds_engine.runner.runner import Runner
from pds_engine.worker.process import kv_format


@dataclass
class Sequence_:
    """One request on its way: what a scheduler knows of it."""

    slot: int
    gen: int
    prompt: list[int]
    sampling: Sampling
    pages: list[int]
    computed: int = 0
    output: list[int] = field(default_factory=list)
    chances: list[TokenLogprobs | None] = field(default_factory=list)
    prompt_chances: list[TokenLogprobs] = field(default_factory=list)
    unsound: list[int] = field(default_factory=list)
    """Places in `output` that mean nothing, by the runner's own word."""


class Driver:
    """Runs requests to their end: whole chunks beside decode rows, as the scheduler would plan."""

    def __init__(
        self,
        path: Path,
        *,
        page_size: int = 16,
        pages: int = 400,
        poison: bool = True,
        collectives: Collectives = ALONE,
        stage: Collectives | None = None,
        pp_rank: int = 0,
        **keys: Any,
    ) -> None:
        """`stage`: the collectives of all ranks of its stage; None: there is one dp rank."""
        stage = stage or collectives
        split = {"tp": collectives.size, "dp": stage.size // collectives.size}
        self.config = self.configured(path, page_size, **{"parallelism": split, **keys})
        rank = pp_rank * stage.size + stage.rank
        self.decoder = load(self.config, rank, torch.device("cpu"), collectives, stage)
        self.runner_part = self.decoder.part
        part, kv = self.runner_part, kv_format(self.config, self.decoder)
        held = (part.layers.start, part.layers.stop)
        mine = shard(kv, layers=held, tp_rank=part.tp_rank, tp=part.tp)
        pool = KvPool(kv, mine, pages + 1)
        self.pool = pool.data
        self.pool[:-1] = float("nan") if poison else 0.0
        self.layers = [pool.layer(at) for at in range(len(self.decoder.layers))]
        self.runner = Runner(self.config, self.decoder, self.layers)
        self.page_size = page_size
        self.free = list(range(pages))
        random.Random(3).shuffle(self.free)
        self.steps = 0
        self.gen = 0

    @staticmethod
    def configured(path: Path, page_size: int = 16, **keys: Any) -> EngineConfig:
        return EngineConfig.model_validate(
            {
                "model": {"path": path, "dtype": "float32"},
                "max_model_len": 512,
                "kv": {"page_size": page_size},
                "scheduler": {"max_running": 16},
            }
            | keys
        )

    def admit(self, slot: int, prompt: Sequence[int], sampling: Sampling, seed: int) -> Sequence_:
        self.gen += 1
        count = -(-(len(prompt) + sampling.max_tokens) // self.page_size)
        pages, self.free = self.free[:count], self.free[count:]
        covered = -(-len(prompt) // self.page_size)
        self.runner.admit(
            Admit(
                slot=slot,
                gen=self.gen,
                prompt_ids=tuple(prompt),
                output_ids=(),
                sampling=sampling,
                seed=seed,
                pages=tuple(pages[:covered]),
            )
        )
        return Sequence_(slot, self.gen, list(prompt), sampling, pages[covered:])

    def step(self, rows: Sequence[Row], padded: int = 0) -> StepDone:
        """`padded`: to at least so many tokens."""
        tokens = sum(row.length for row in rows)
        plan = StepPlan(
            step_id=self.steps,
            rows=tuple(rows),
            expects_output=False,
            depends_on=-1,
            padded_tokens=max(padded, tokens + -tokens % self.config.parallelism.tp),
        )
        self.steps += 1
        done = self.runner.launch(plan, None).collect()
        assert done is not None
        assert done.step_id == plan.step_id
        return done

    def row(self, request: Sequence_, chunk: int) -> Row:
        total = len(request.prompt) + len(request.output)
        length = min(chunk, total - request.computed)
        new = ()
        end = request.computed + length
        if end > len(request.prompt) and (end - 1) % self.page_size == 0:
            new = (request.pages.pop(0),)
        return Row(
            slot=request.slot,
            gen=request.gen,
            start=request.computed,
            length=length,
            new_pages=new,
            samples=end == total,
            scores=request.sampling.prompt_logprobs is not None
            and request.computed + 1 < len(request.prompt),
        )

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling | Sequence[Sampling],
        *,
        chunk: int = 128,
        budget: int = 4096,
        seeds: Sequence[int] | None = None,
        padded: int = 0,
    ) -> list[Sequence_]:
        """All prompts at once; each step takes what `budget` tokens hold, in order of arrival."""
        options = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        requests = [
            self.admit(slot, prompt, options[slot], seeds[slot] if seeds else 0)
            for slot, prompt in enumerate(prompts)
        ]
        while live := [r for r in requests if len(r.output) < r.sampling.max_tokens]:
            rows, taken, left = [], [], budget
            for request in live:
                row = self.row(request, min(chunk, left))
                rows.append(row)
                taken.append(request)
                left -= row.length
                if left < 1:
                    break
            done = self.step(rows, padded)
            scored = [r for r, row in zip(taken, rows, strict=True) if row.scores]
            for request, chances in zip(scored, done.prompt_logprobs, strict=True):
                request.prompt_chances.extend(chances)
            sampled = [r for r, row in zip(taken, rows, strict=True) if row.samples]
            for request, row in zip(taken, rows, strict=True):
                request.computed += row.length
            results = zip(sampled, done.tokens, done.logprobs, strict=True)
            for place, (request, token, chance) in enumerate(results):
                if place in done.unsound:
                    request.unsound.append(len(request.output))
                request.output.append(token)
                request.chances.append(chance)
        for request in requests:
            self.runner.release(
                Release(slot=request.slot, gen=request.gen, after_step=self.steps - 1)
            )
        return requests


class Reference:
    """What transformers computes in float32. Tokens whose experts are nearly tied are refused."""

    def __init__(self) -> None:
        self._models: dict[Path, torch.nn.Module] = {}

    def __call__(self, path: Path, prompt: Sequence[int], count: int) -> list[int]:
        """Greedy tokens; refuses a prompt that ends in a near tie."""
        ids, found, cache = torch.tensor([list(prompt)]), [], None
        with torch.inference_mode():
            for _ in range(count):
                out = self._model(path)(ids, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                best = out.logits[0, -1].topk(2)
                assert best.values[0] - best.values[1] > 1e-4
                found.append(int(best.indices[0]))
                ids = torch.tensor([[found[-1]]])
        return found

    def logprobs(self, path: Path, tokens: Sequence[int]) -> torch.Tensor:
        """Of all tokens that may follow each of `tokens`: [len(tokens), vocab]."""
        with torch.inference_mode():
            return self._model(path)(torch.tensor([list(tokens)])).logits[0].log_softmax(-1)

    def _model(self, path: Path) -> torch.nn.Module:
        import transformers

        if path not in self._models:
            model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            near_ties.watch(model)
            self._models[path] = model.eval()
        return self._models[path]
