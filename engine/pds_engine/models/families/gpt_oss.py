"""gpt-oss: experts with biases, sinks beside the scores, and a window in every other layer."""

from pds_engine.errors import ConfigError
from pds_engine.models.components import FULL, SLIDING, decoder, gqa, layer_count, windows_by_layer
from pds_engine.models.config_json import flag, number, whole
from pds_engine.models.family import Family
from pds_engine.models.names import ExpertNames, Names
from pds_engine.models.sparse import count, top_k
from pds_engine.spec import DecoderSpec, ExpertsSpec, GateSpec, Json, LayerSpec

NAME = "GptOssForCausalLM"
_POSITIONS = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
"""What rotary positions are where config.json says nothing of them."""


def spec(config: Json) -> DecoderSpec:
    """Family.spec of gpt-oss; the first layer has a window."""
    if config.get("rope_parameters") is None and not config.get("rope_scaling"):
        config = {**config, "rope_parameters": _POSITIONS}
    _check_old_name(config)
    biased = flag(config, "attention_bias", missing=True)
    feed = ExpertsSpec(
        experts=count(config),
        top_k=top_k(config),
        columns=whole(config, "intermediate_size"),
        gate=GateSpec(score="softmax_of_chosen", bias=True),
        activation="clamped",
        bias=True,
    )
    default = [FULL if layer % 2 else SLIDING for layer in range(layer_count(config))]
    layers = [
        LayerSpec(
            attention=gqa(
                config,
                kv_heads=8,
                head_dim=64,
                theta=150000.0,
                qkv_bias=biased,
                out_bias=biased,
                window=size,
                sinks=True,
            ),
            feed=feed,
        )
        for size in windows_by_layer(config, default, missing=128)
    ]
    eps = number(config, "rms_norm_eps", missing=1e-5)
    return decoder(config, NAME, layers, norm_eps=eps, norm_wide=True)


def _check_old_name(config: Json) -> None:
    """`experts_per_token` is OpenAI's own name, which stands beside transformers' one."""
    old = config.get("experts_per_token")
    if old is not None and old != top_k(config):
        raise ConfigError(
            f"config.json: experts_per_token {old!r} is not num_experts_per_tok, {top_k(config)}",
            hint="num_experts_per_tok is what counts: take experts_per_token out",
        )


FAMILY = Family(
    architecture=NAME,
    model_type="gpt_oss",
    spec=spec,
    names=Names(
        experts=ExpertNames(
            router="mlp.router", gate_up="mlp.experts.gate_up_proj", down="mlp.experts.down_proj"
        )
    ),
    reads=frozenset(
        {
            "attention_bias",
            "experts_per_token",
            "num_experts",
            "num_experts_per_tok",
            "num_local_experts",
        }
    ),
    # the activation's numbers; hidden_act has no effect
    fixed={"swiglu_alpha": (1.702,), "swiglu_limit": (7.0,)},
)
