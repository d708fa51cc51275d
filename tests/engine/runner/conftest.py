"""Models of random weights, and what drives them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pds_engine.messages import Sampling
from pds_kernels.cpu import library
from random_models import MODELS, saved
from runner_driver import Driver, Reference
from safetensors.torch import load_file, save_file

GREEDY = Sampling(max_tokens=1, temperature=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpp", "torch"])
def each_sampler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are chosen by the kernel for CPUs, and by the definition."""
    if request.param == "torch":
        monkeypatch.delitem(library._provided, "sampler")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of random weights for each family, by its architecture."""
    return {name: saved(name, tmp_path_factory.mktemp(name)) for name in MODELS}


@pytest.fixture(scope="session")
def qwen2(models: dict[str, Path]) -> Path:
    return models["Qwen2ForCausalLM"]


@pytest.fixture(scope="session")
def qwen3(models: dict[str, Path]) -> Path:
    return models["Qwen3ForCausalLM"]


@pytest.fixture(scope="session")
def llama(models: dict[str, Path]) -> Path:
    return models["LlamaForCausalLM"]


Edit = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture
def variant(models: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """A family's model with keys of its configuration and tensors changed; a key that is `...` is
    left out. What save_pretrained would never write can be had only so."""

    def make(architecture: str, edit: Edit = lambda tensors: None, **keys: Any) -> Path:
        config = json.loads((models[architecture] / "config.json").read_text()) | keys
        kept = {key: value for key, value in config.items() if value is not ...}
        (tmp_path / "config.json").write_text(json.dumps(kept))
        tensors = load_file(models[architecture] / "model.safetensors")
        edit(tensors)
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        return tmp_path

    return make


@pytest.fixture
def overflowing(variant: Callable[..., Path], overflow: Edit) -> Path:
    """Finite weights whose numbers overflow where `poison` is among the tokens, and else never."""
    return variant("LlamaForCausalLM", overflow)


@pytest.fixture
def driver() -> type[Driver]:
    return Driver


@pytest.fixture(scope="session")
def reference() -> Reference:
    return Reference()
