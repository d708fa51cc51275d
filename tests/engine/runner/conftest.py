"""A model of random weights, and the least scheduler that can drive a Runner by plans."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pds_engine.config import EngineConfig
from pds_engine.messages import Admit, Release, Row, Sampling, StepDone, StepPlan
from pds_engine.models.loader import load
from pds_engine.runner.runner import Runner

GREEDY = Sampling(max_tokens=1, temperature=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _save(kind: str, folder: Path, **options: Any) -> Path:
    torch.manual_seed(7)
    config = getattr(transformers, f"{kind}Config")(
        **{
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 512,
            "initializer_range": 0.15,
            "eos_token_id": None,
            "bos_token_id": None,
            "pad_token_id": None,
        }
        | options
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _save("Qwen3", tmp_path_factory.mktemp("qwen3"), tie_word_embeddings=True)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scaling = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return _save("Llama", tmp_path_factory.mktemp("llama"), rope_parameters=scaling)


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
    chances: list[Any] = field(default_factory=list)


class Driver:
    """Runs requests to their end: whole chunks beside decode rows, as the scheduler would plan."""

    def __init__(
        self, path: Path, *, page_size: int = 16, pages: int = 400, poison: bool = True, **keys: Any
    ) -> None:
        self.config = EngineConfig.model_validate(
            {
                "model": {"path": path, "dtype": "float32"},
                "max_model_len": 512,
                "kv": {"page_size": page_size},
                "scheduler": {"max_running": 16},
            }
            | keys
        )
        decoder = load(self.config, 0, torch.device("cpu"))
        spec = decoder.spec
        shape = (pages + 1, spec.layers, 2, spec.kv_heads, page_size, spec.head_dim)
        self.pool = torch.full(shape, float("nan") if poison else 0.0)
        self.pool[-1] = 0
        self.runner = Runner(
            self.config,
            decoder,
            [(self.pool[:, i, 0], self.pool[:, i, 1]) for i in range(spec.layers)],
        )
        self.page_size = page_size
        self.free = list(range(pages))
        random.Random(3).shuffle(self.free)
        self.steps = 0
        self.gen = 0

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

    def step(self, rows: Sequence[Row], padded: int = 0, **keys: Any) -> StepDone:
        plan = StepPlan(
            step_id=self.steps,
            rows=tuple(rows),
            expects_output=False,
            depends_on=-1,
            padded_tokens=padded,
            padded_rows=0,
            **keys,
        )
        self.steps += 1
        done = self.runner.execute(plan, None).done
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
            sampled = [r for r, row in zip(taken, rows, strict=True) if row.samples]
            for request, row in zip(taken, rows, strict=True):
                request.computed += row.length
            for request, token, chance in zip(sampled, done.tokens, done.logprobs, strict=True):
                request.output.append(token)
                request.chances.append(chance)
        for request in requests:
            self.runner.release(
                Release(slot=request.slot, gen=request.gen, after_step=self.steps - 1)
            )
        return requests


@pytest.fixture
def driver() -> type[Driver]:
    return Driver


Reference = Callable[[Path, Sequence[int], int], list[int]]


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Greedy tokens of transformers in float32; refuses a prompt that ends in a near tie."""
    models: dict[Path, Any] = {}

    def tokens(path: Path, prompt: Sequence[int], count: int) -> list[int]:
        if path not in models:
            models[path] = transformers.AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32
            ).eval()
        ids, found, cache = torch.tensor([list(prompt)]), [], None
        with torch.inference_mode():
            for _ in range(count):
                out = models[path](ids, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                best = out.logits[0, -1].topk(2)
                assert best.values[0] - best.values[1] > 1e-4
                found.append(int(best.indices[0]))
                ids = torch.tensor([[found[-1]]])
        return found

    return tokens
