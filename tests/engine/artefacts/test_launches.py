"""What a warm-up finds to compile is what serving launches: Triton interprets the kernels here."""

import random
from pathlib import Path

import pytest
from pds_engine.artefacts.launches import launches
from pds_engine.config import EngineConfig
from pds_engine.messages import Sampling
from pds_engine.models.registry import read_spec
from pds_engine.parallel.layout import part
from pds_kernels import launching, on_triton
from pds_kernels.launching import Launch
from pds_kernels.targets import gpu
from random_models import MODELS, saved
from runner_driver import Driver, Reference

PUBLISHED = Path(__file__).parents[1] / "models" / "published"
HOPPER = gpu("sm_90")
PROMPTS = (1, 15, 16, 17, 40)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: saved(name, tmp_path_factory.mktemp(name)) for name in MODELS}


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The CPU is served by Triton's kernels; what they are launched with is noted."""
    found: list[Launch] = []
    run = launching.run

    def note(kernel: object, grid: object, arguments: object, constants: object) -> None:
        found.append(launching.described(kernel, arguments, constants))
        run(kernel, grid, arguments, constants)

    monkeypatch.setattr(on_triton, "runs_on", lambda device: True)
    monkeypatch.setattr(launching, "run", note)
    return found


QUICK = ("Gemma2ForCausalLM", "DeepseekV3ForCausalLM", "GptOssForCausalLM")
"""Between them they launch every kernel; the others are soak."""


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(each, marks=() if each in QUICK else pytest.mark.soak)
        for each in sorted(MODELS)
    ],
)
def test_tokens_are_transformers_and_nothing_else_is_launched(
    family: str, models: dict[str, Path], launched: list[Launch]
) -> None:
    path, source = models[family], random.Random(1)
    prompts = [[source.randrange(3, 320) for _ in range(length)] for length in PROMPTS]
    driver = Driver(path)
    answers = driver.run(prompts, Sampling(max_tokens=5, temperature=0.0), chunk=16)
    assert [each.output for each in answers] == [Reference()(path, p, 5) for p in prompts]
    planned = launches(driver.config, driver.decoder.spec, driver.decoder.part, HOPPER)
    assert launched
    assert {each.name for each in launched} <= {each.name for each in planned}
    assert set(launched) - set(planned) == set()


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("llama-3.1-8b", {"tp": 2}),
        ("gemma-3-27b", {"tp": 2}),
        ("mistral-7b-v0.1", {"pp": 2}),
        ("gpt-oss-120b", {"tp": 8}),
        ("qwen3-30b-a3b", {"dp": 4, "ep": True}),
        ("deepseek-v3", {"pp": 4, "tp": 8}),
    ],
)
def test_plans_of_published_models(tmp_path: Path, name: str, layout: dict[str, int]) -> None:
    """Every stage has one, from config.json alone."""
    (tmp_path / "config.json").write_bytes((PUBLISHED / f"{name}.json").read_bytes())
    keys = {"model": {"path": tmp_path, "dtype": "bfloat16"}, "parallelism": layout}
    config, spec = EngineConfig.model_validate(keys), read_spec(tmp_path)
    width = config.parallelism.tp * config.parallelism.dp
    for rank in range(0, config.parallelism.ranks, width):
        mine = part(spec, config.parallelism, rank, config.role)
        assert launches(config, spec, mine, HOPPER)
