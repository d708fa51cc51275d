"""A model folder that a test may spoil."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pds_engine.config import EngineConfig
from safetensors.torch import load_file, save_file

SHAPE = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 40,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


class Folder:
    """A model of random weights at `path`; each method changes one thing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        generator = torch.Generator().manual_seed(1)
        shapes = {
            "model.embed_tokens": (40, 16),
            "lm_head": (40, 16),
            "model.norm": (16,),
        }
        for layer in range(2):
            name = f"model.layers.{layer}."
            shapes |= {
                f"{name}input_layernorm": (16,),
                f"{name}post_attention_layernorm": (16,),
                f"{name}self_attn.q_proj": (32, 16),
                f"{name}self_attn.k_proj": (16, 16),
                f"{name}self_attn.v_proj": (16, 16),
                f"{name}self_attn.o_proj": (16, 32),
                f"{name}self_attn.q_norm": (8,),
                f"{name}self_attn.k_norm": (8,),
                f"{name}mlp.gate_proj": (24, 16),
                f"{name}mlp.up_proj": (24, 16),
                f"{name}mlp.down_proj": (16, 24),
            }
        self.write({f"{n}.weight": torch.randn(s, generator=generator) for n, s in shapes.items()})
        self.configure()

    @property
    def weights(self) -> Path:
        return self.path / "model.safetensors"

    def write(self, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, self.weights)

    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.weights)

    def change(self, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
        tensors = self.tensors()
        edit(tensors)
        self.write(tensors)

    def become(self, architecture: str, **keys: Any) -> None:
        """A model of another family: its configuration, and the tensors that it has."""
        self.configure(architectures=[architecture], **keys)

        def fit(tensors: dict[str, torch.Tensor]) -> None:
            for name in [n for n in tensors if "q_norm" in n or "k_norm" in n]:
                del tensors[name]
            if architecture == "Qwen2ForCausalLM":
                for layer in range(2):
                    for part, size in {"q": 32, "k": 16, "v": 16}.items():
                        name = f"model.layers.{layer}.self_attn.{part}_proj.bias"
                        tensors[name] = torch.linspace(-1, 1, size)

        self.change(fit)

    def configure(self, **keys: Any) -> None:
        kept = {key: value for key, value in (SHAPE | keys).items() if value is not ...}
        (self.path / "config.json").write_text(json.dumps(kept))

    def engine(self, **keys: Any) -> EngineConfig:
        base = {"model": {"path": self.path, "dtype": "float32"}, "max_model_len": 64}
        return EngineConfig.model_validate(base | keys)
