"""A small model on disk, and the keys of a group."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    config = transformers.Qwen3Config(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def config(model: Path) -> EngineConfig:
    return EngineConfig.model_validate(
        {
            "model": {"path": model, "dtype": "float32"},
            "max_model_len": 256,
            "kv": {"pages": 64, "backends": ["tcp"], "port_base": 0},
            "scheduler": {"max_running": 4},
        }
    )


@pytest.fixture(scope="session")
def keys() -> Keys:
    return Keys.make()
