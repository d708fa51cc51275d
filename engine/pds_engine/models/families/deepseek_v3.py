"""DeepSeek-V3 and R1: as V2, but experts are scored by sigmoids with a correction that balances
them (DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024)."""

from pds_engine.models import latent
from pds_engine.models.components import FULL, MOST_LAYERS, all_alike, decoder
from pds_engine.models.config_json import count, flag, number, whole
from pds_engine.models.family import Family
from pds_engine.models.names import ExpertNames, Names
from pds_engine.spec import DecoderSpec, ExpertsSpec, GateSpec, Json

NAME = "DeepseekV3ForCausalLM"
_DEFAULTS: Json = {
    "num_key_value_heads": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_interleave": True,
    "first_k_dense_replace": 3,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}
_PREDICTORS = ("num_nextn_predict_layers", "num_mtp_layers")
"""What DeepSeek, and what transformers calls the layers that predict further tokens."""


def spec(config: Json) -> DecoderSpec:
    """Family.spec of DeepSeek-V3."""
    config = {**_DEFAULTS, **config}
    all_alike(config, FULL)
    _predictors(config)
    attention = latent.mla(config, interleaved=flag(config, "rope_interleave"))
    return decoder(config, NAME, latent.dense_first(config, attention, _experts))


def _experts(config: Json) -> ExpertsSpec:
    gate = GateSpec(
        score="sigmoid",
        wide=True,
        renormalise=flag(config, "norm_topk_prob"),
        scaling=number(config, "routed_scaling_factor"),
        groups=whole(config, "n_group"),
        top_groups=whole(config, "topk_group"),
        group_score="top2",
        correction=True,
    )
    return latent.experts(config, gate)


def _predictors(config: Json) -> int:
    """Family.predictors: 1 where config.json does not say."""
    key = next((key for key in _PREDICTORS if key in config), None)
    return 1 if key is None else count(config, key, most=MOST_LAYERS)


FAMILY = Family(
    architecture=NAME,
    model_type="deepseek_v3",
    spec=spec,
    names=Names(experts=ExpertNames(shared="mlp.shared_experts")),
    reads=latent.READS | {"rope_interleave", "norm_topk_prob", *_PREDICTORS},
    fixed={
        "topk_method": ("noaux_tc",),
        "scoring_func": ("sigmoid",),
        "moe_layer_freq": (1,),
    },
    own_code=frozenset({"modeling_deepseek.DeepseekV3Model", f"modeling_deepseek.{NAME}"}),
    predictors=_predictors,
)
