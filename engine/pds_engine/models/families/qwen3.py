"""Qwen3, dense: Llama with queries and keys normalised per head."""

from pds_engine.models.components import decoder, dense, gqa, windows_behind_a_switch
from pds_engine.models.family import Family
from pds_engine.spec import DecoderSpec, Json, LayerSpec

NAME = "Qwen3ForCausalLM"


def spec(config: Json) -> DecoderSpec:
    """Family.spec of Qwen3; its last layers may have a window."""
    layers = [
        LayerSpec(
            attention=gqa(config, kv_heads=32, head_dim=128, qk_norm="head", window=each),
            feed=dense(config),
        )
        for each in windows_behind_a_switch(config)
    ]
    return decoder(config, NAME, layers)


FAMILY = Family(
    architecture=NAME,
    model_type="qwen3",
    spec=spec,
    reads=frozenset({"use_sliding_window", "max_window_layers"}),
)
