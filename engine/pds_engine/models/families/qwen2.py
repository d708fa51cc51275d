"""Qwen2 and Qwen2.5, dense: Llama with biases on queries, keys and values."""

from pds_engine.models.components import decoder, dense, gqa, windows_behind_a_switch
from pds_engine.models.family import Family
from pds_engine.spec import DecoderSpec, Json, LayerSpec

NAME = "Qwen2ForCausalLM"


def spec(config: Json) -> DecoderSpec:
    """Family.spec of Qwen2; its last layers may have a window."""
    layers = [
        LayerSpec(
            attention=gqa(config, kv_heads=32, qkv_bias=True, window=each), feed=dense(config)
        )
        for each in windows_behind_a_switch(config)
    ]
    return decoder(config, NAME, layers)


FAMILY = Family(
    architecture=NAME,
    model_type="qwen2",
    spec=spec,
    reads=frozenset({"use_sliding_window", "max_window_layers"}),
)
