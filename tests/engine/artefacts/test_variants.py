"""Whatever a step is made of, a rank launches nothing that its plan does not have.

The real runner executes random steps on torch's meta device: nothing is computed there, and each
launch says how its kernel is compiled. A number that is 1 or a multiple of 16 by chance, or a
tensor that begins at an odd place, would be a variant that nobody planned.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pds_engine.artefacts.launches import Launched, launched
from pds_engine.config import EngineConfig
from pds_engine.kv.pool import KvPool
from pds_engine.messages import Admit, Release, Row, Sampling, StepPlan
from pds_engine.models import meta
from pds_engine.models.registry import read_spec
from pds_engine.parallel.layout import ModelPart, part
from pds_engine.runner.runner import Runner
from pds_engine.sizing import kv_format, kv_shard
from pds_engine.spec import DecoderSpec
from pds_kernels import fp8_gemm
from pds_kernels.launching import recording
from pds_kernels.targets import gpu
from torch.overrides import TorchFunctionMode

GPU = gpu("sm_90")
PUBLISHED = Path(__file__).parents[1] / "models" / "published"
LONGEST, STEPS = 600, 7
SAMPLINGS = tuple(
    Sampling(max_tokens=9, **keys)
    for keys in (
        {"top_k": 5, "top_p": 0.9},  # torch takes long for it on the meta device
        {"temperature": 0.0},
        {"presence_penalty": 0.5},
        {"min_p": 0.1, "logprobs": 2},
        {"logit_bias": {5: 1.0}, "prompt_logprobs": 1},
    )
)


class Zeros(TorchFunctionMode):
    """What is read from the meta device is zeros."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.tolist and args[0].is_meta:
            return torch.zeros(args[0].shape, dtype=args[0].dtype).tolist()
        return func(*args, **kwargs or {})


class Rank:
    """A rank on the meta device, and random steps for it."""

    def __init__(self, config: EngineConfig, spec: DecoderSpec, mine: ModelPart, seed: int) -> None:
        decoder, kv = meta.decoder(config, spec, mine, GPU), kv_format(config, spec)
        pool = KvPool(kv, kv_shard(kv, mine), 4, "meta")
        self.runner = Runner(config, decoder, [pool.layer(at) for at in range(len(decoder.layers))])
        self.config, self.mine, self.hidden = config, mine, decoder.spec.hidden
        self.dtype = decoder.dtype
        self.random = random.Random(seed)

    def launches(self, step_id: int) -> Launched:
        """Of one step."""
        plan, tp = self.plan(step_id), self.mine.tp
        hidden = torch.empty(
            plan.padded_tokens // tp, self.hidden, dtype=self.dtype, device=meta.META
        )
        with recording() as found, fp8_gemm.recording() as gemms, Zeros():
            self.runner.launch(plan, None if self.mine.embeds else hidden)
        for row in plan.rows:
            self.runner.release(Release(slot=row.slot, gen=row.gen, after_step=step_id))
        return Launched(tuple(found), tuple(gemms))

    def plan(self, step_id: int) -> StepPlan:
        """Chunks, single tokens or both; without rows where there are other dp ranks."""
        draw, tp, dp = self.random, self.mine.tp, self.mine.dp
        shapes = [draw.choice((1, 1, draw.randint(2, 200))) for _ in range(draw.randint(1, 5))]
        if dp > 1 and draw.random() < 0.2:
            shapes = []
        rows = tuple(self.row(slot, step_id, length) for slot, length in enumerate(shapes))
        padded = -(-(sum(shapes) + draw.choice((0, 0, draw.randint(0, 40)))) // tp) * tp
        others = [draw.choice((0, 1, draw.randint(2, 300))) * tp for _ in range(dp)]
        others[self.mine.dp_rank] = padded
        if not any(others):
            others[self.mine.dp_rank - 1] = tp
        return StepPlan(
            step_id=step_id,
            rows=rows,
            expects_output=False,
            depends_on=-1,
            padded_tokens=padded,
            dp_tokens=tuple(others) if dp > 1 else (),
        )

    def row(self, slot: int, gen: int, length: int) -> Row:
        """`length` tokens at the end of a prompt, whose request is admitted."""
        end = self.random.randint(length, LONGEST)
        sampling = self.random.choice(SAMPLINGS if gen == 0 else SAMPLINGS[1:])
        pages = (0,) * -(-end // self.config.kv.page_size)
        self.runner.admit(
            Admit(
                slot=slot, gen=gen, prompt_ids=(7,) * end, output_ids=(), sampling=sampling,
                seed=gen, pages=pages,
            )
        )  # fmt: skip
        return Row(
            slot=slot,
            gen=gen,
            start=end - length,
            length=length,
            samples=self.random.random() < 0.8,
            scores=sampling.prompt_logprobs is not None,
        )


@pytest.mark.parametrize(
    ("name", "role", "layout"),
    [
        ("llama-3.1-8b", "decode", {}),
        ("gemma-3-27b", "prefill", {"tp": 2}),
        ("mistral-7b-v0.1", "prefill", {"pp": 3}),
        ("gpt-oss-120b", "decode", {"tp": 8}),
        ("qwen3-30b-a3b", "prefill", {"dp": 4, "ep": True}),
        ("deepseek-v3", "unified", {"pp": 4, "tp": 2, "dp": 2}),
    ],
)
def test_any_step_launches_what_is_planned(
    tmp_path: Path, name: str, role: str, layout: dict[str, int]
) -> None:
    """Of the first stages and the last one, from config.json alone."""
    (tmp_path / "config.json").write_bytes((PUBLISHED / f"{name}.json").read_bytes())
    keys = {
        "model": {"path": tmp_path, "dtype": "bfloat16"},
        "parallelism": layout,
        "role": role,
        "max_model_len": 1 << 12,
    }
    config, spec = EngineConfig.model_validate(keys), read_spec(tmp_path)
    stage = config.parallelism.tp * config.parallelism.dp
    for at in sorted({0, 1, config.parallelism.pp - 1} & set(range(config.parallelism.pp))):
        rank = at * stage + at % stage
        mine = part(spec, config.parallelism, rank, config.role)
        planned = launched(config, spec, mine, GPU)
        runs = Rank(config, spec, mine, seed=at)
        steps = [runs.launches(step) for step in range(STEPS)]
        found = {launch for each in steps for launch in each.triton}
        assert found - set(planned.triton) == set()
        assert found
        # All numbers of tokens are planned for a product: pds_kernels.builders.deep_gemm.covering.
        products = {(gemm.n, gemm.k) for each in steps for gemm in each.deep_gemm}
        assert products == {(gemm.n, gemm.k) for gemm in planned.deep_gemm}
