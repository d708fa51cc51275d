"""What a warm-up finds to compile is what serving launches: Triton interprets the kernels here."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from fp8_models import quantise
from pds_engine.artefacts.launches import launches
from pds_engine.messages import Sampling
from pds_kernels import launching, on_triton
from pds_kernels.launching import Launch
from pds_kernels.targets import gpu
from random_models import MODELS, saved
from runner_driver import Driver, Reference

HOPPER = gpu("sm_90")
PROMPTS = (1, 17, 35)


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
"""Between them they launch every kernel but one; the others are soak."""
WRITER = {
    "DeepseekV2ForCausalLM": "mla.write_latents",
    "DeepseekV3ForCausalLM": "mla.write_latents",
    "Olmo2ForCausalLM": "paged_attention.write_pages",
}
"""What fills the pages of families that the kernel of rotations does not serve."""
WRITERS = {"rope.rotate_heads", *WRITER.values()}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(each, marks=() if each in QUICK else pytest.mark.soak)
        for each in sorted(MODELS)
    ],
)
def test_tokens_are_transformers_and_nothing_else_is_launched(
    family: str, tmp_path: Path, launched: list[Launch]
) -> None:
    path, source = saved(family, tmp_path), random.Random(1)
    prompts = [[source.randrange(3, 320) for _ in range(length)] for length in PROMPTS]
    driver, greedy = Driver(path), Sampling(max_tokens=3, temperature=0.0)
    drawn = Sampling(max_tokens=3, min_p=0.1)
    *answers, _ = driver.run([*prompts, [7]], [greedy] * len(prompts) + [drawn], chunk=16)
    assert [each.output for each in answers] == [Reference()(path, p, 3) for p in prompts]
    planned = launches(driver.config, driver.decoder.spec, driver.decoder.part, HOPPER)
    names = {each.name for each in launched}
    assert names <= {each.name for each in planned}
    assert set(launched) - set(planned) == set()
    assert names & WRITERS == {WRITER.get(family, "rope.rotate_heads")}
    assert "sampler.best_of_rows" in names


def test_a_mixture_in_fp8_launches_what_is_planned(tmp_path: Path, launched: list[Launch]) -> None:
    """Its experts are multiplied by as they are stored."""
    path = saved("Qwen3MoeForCausalLM", tmp_path)
    quantise(path, (16, 32))
    driver = Driver(path)
    driver.run([[3, 10, 17]], Sampling(max_tokens=1, temperature=0.0))
    planned = launches(driver.config, driver.decoder.spec, driver.decoder.part, HOPPER)
    assert {on_gpu(each) for each in launched} <= {on_gpu(each) for each in planned}
    experts = [each for each in launched if each.name == "grouped_gemm.down"]
    assert {dict(each.constants)["high"] for each in experts} == {16}


def on_gpu(launch: Launch) -> Launch:
    """Without what tells the interpreter's roundings from a GPU's."""
    kept = tuple(each for each in launch.constants if each[0] != "by_hand")
    return replace(launch, constants=kept)
