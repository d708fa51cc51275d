"""A plan for Hopper of a model in FP8 has DeepGEMM's kernels, and a worker finds them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pds_engine.artefacts.plan import Plan, plan
from pds_engine.cache import open_cache
from pds_engine.config import EngineConfig
from pds_engine.runner.shape_plan import most_tokens
from pds_engine.worker.kernels import install
from pds_kernels.builders.deep_gemm import DeepGemmKernel, planning
from pds_kernels.cache import Artefact
from pds_kernels.fp8_gemm import Gemm
from pds_kernels.targets import gpu

PUBLISHED = Path(__file__).parents[1] / "models" / "published"
HOPPER = gpu("sm_90")
SMALL = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 512,
    "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 128, "kv_lora_rank": 128,
    "n_routed_experts": 8, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 128, "first_k_dense_replace": 1, "max_position_embeddings": 4096,
}  # fmt: skip
"""DeepSeek-V3 with less of everything."""
DENSE = {(128, 256), (384, 128), (192, 256), (256, 256), (512, 256), (256, 128)}
"""Rows and columns: q_a and the shared block's gates share one, so do attention's and the block's
last product."""


def configured(folder: Path, target: str, **changed: Any) -> EngineConfig:
    said = json.loads((PUBLISHED / "deepseek-v3.json").read_text())
    (folder / "config.json").write_text(json.dumps(said | SMALL | changed))
    return EngineConfig.model_validate(
        {
            "model": {"path": folder, "dtype": "bfloat16"},
            "max_model_len": 1024,
            "scheduler": {"chunk_size": 64, "max_running": 16},
            "cache": {"path": folder / "cache", "private": folder / "own", "target": target},
        }
    )


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> tuple[EngineConfig, Plan]:
    config = configured(tmp_path_factory.mktemp("model"), "sm_90")
    return config, plan(config)


def of_deep_gemm(planned: Plan) -> list[DeepGemmKernel]:
    return [each for each in planned.wanted if isinstance(each, DeepGemmKernel)]


def triton_kernels(planned: Plan) -> set[str]:
    return {each.name.split("[")[0] for each in planned.wanted if each.kind == "triton"}


def test_hopper_multiplies_by_deep_gemm(hopper: tuple[EngineConfig, Plan]) -> None:
    _, planned = hopper
    found = of_deep_gemm(planned)
    print([each.name for each in found])
    assert {each.function for each in found} == {"sm90_fp8_gemm_1d2d"}
    assert len({each.name for each in planned.wanted}) == len(planned.wanted)
    kinds = triton_kernels(planned)
    assert "fp8.quantising.quantise_groups" in kinds
    assert "fp8_linear.multiply" not in kinds


@pytest.mark.parametrize(
    ("target", "changed", "quantises"),
    [
        ("sm_100", {}, True),  # DeepGEMM wants other scales there
        ("sm_80", {}, False),  # it has no FP8
        ("sm_90", {"quantization_config": None}, False),
    ],
)
def test_elsewhere_triton_does_or_torch(
    tmp_path: Path, target: str, changed: dict[str, Any], quantises: bool
) -> None:
    planned = plan(configured(tmp_path, target, **changed))
    kinds = triton_kernels(planned)
    assert not of_deep_gemm(planned)
    assert ("fp8_linear.multiply" in kinds) == quantises


def installed(config: EngineConfig, found: dict[DeepGemmKernel, Artefact]) -> dict[str, str]:
    """What a worker leaves in the environment when it installs what was `found`."""
    before = dict(os.environ)
    by_name = {kernel.name: artefact for kernel, artefact in found.items()}
    try:
        install(Plan("sm_90", tuple(found)), by_name, open_cache(config))
        return {name: text for name, text in os.environ.items() if before.get(name) != text}
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_a_worker_tells_deep_gemm_where_its_kernels_are(
    hopper: tuple[EngineConfig, Plan], tmp_path: Path
) -> None:
    """Of an artefact its source is looked at, and not what nvcc made of it."""
    config, planned = hopper
    first = of_deep_gemm(planned)[0]
    (tmp_path / "kernel.cu").write_text(first.source)
    (tmp_path / "kernel.cubin").write_bytes(b"of nvcc")
    told = installed(
        config, {first: Artefact(first.kind, "", tmp_path, built=False, shared=False, seconds=0.0)}
    )
    assert (Path(told["DG_JIT_CACHE_DIR"]) / "cache" / first.entry / "kernel.cubin").is_file()
    refusing = subprocess.run([told["DG_JIT_NVCC_COMPILER"], "kernel.cu"], capture_output=True)
    assert refusing.returncode == 1
    assert b"no kernel is compiled while serving" in refusing.stderr


@pytest.mark.soak
def test_no_number_of_tokens_is_compiled_while_serving(
    hopper: tuple[EngineConfig, Plan], tmp_path: Path
) -> None:
    """A fresh process with the worker's settings launches each product of a layer, for each number
    of tokens that a step may have. Its nvcc refuses."""
    config, planned = hopper
    cache = open_cache(config)
    built = {
        each: cache.get(each.kind, each.key_inputs(), each.build, timeout=500)
        for each in of_deep_gemm(planned)
    }
    told = installed(config, built)
    counts = range(1, most_tokens(config) + 1)
    gemms = [Gemm(m, *sizes) for sizes in sorted(DENSE) for m in counts]
    answers = planning.ask(gemms, HOPPER, tmp_path, told)
    assert len(answers) == len(gemms)
    assert not Path(f"{told['DG_JIT_NVCC_COMPILER']}.refused").exists()
