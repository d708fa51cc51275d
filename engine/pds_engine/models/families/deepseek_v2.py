"""DeepSeek-V2 and V2-Lite: latent attention, and experts chosen by a softmax (DeepSeek-AI,
"DeepSeek-V2", 2024)."""

from pds_engine.models import latent
from pds_engine.models.components import FULL, all_alike, decoder
from pds_engine.models.config_json import number, whole
from pds_engine.models.family import Family
from pds_engine.models.names import ExpertNames, Names
from pds_engine.spec import DecoderSpec, ExpertsSpec, GateSpec, Json

NAME = "DeepseekV2ForCausalLM"
_DEFAULTS: Json = {
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "first_k_dense_replace": 0,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1407,
    "routed_scaling_factor": 1.0,
    "topk_method": "greedy",
}


def spec(config: Json) -> DecoderSpec:
    """Family.spec of DeepSeek-V2."""
    config = {**_DEFAULTS, **config}
    all_alike(config, FULL)
    attention = latent.mla(config, interleaved=True)
    return decoder(config, NAME, latent.dense_first(config, attention, _experts))


def _experts(config: Json) -> ExpertsSpec:
    """topk_method: all experts (greedy), or those of the best groups (group_limited_greedy)."""
    limited = config["topk_method"] == "group_limited_greedy"
    gate = GateSpec(
        score="softmax",
        wide=True,
        scaling=number(config, "routed_scaling_factor"),
        groups=whole(config, "n_group") if limited else 1,
        top_groups=whole(config, "topk_group") if limited else 1,
    )
    return latent.experts(config, gate)


FAMILY = Family(
    architecture=NAME,
    model_type="deepseek_v2",
    spec=spec,
    names=Names(experts=ExpertNames(shared="mlp.shared_experts")),
    reads=latent.READS,
    fixed={
        "topk_method": ("greedy", "group_limited_greedy"),
        "scoring_func": ("softmax",),
        "moe_layer_freq": (1,),
        # transformers looks at none, and DeepSeek's own code would not scale weights then
        "norm_topk_prob": (False, None),
    },
    own_code=frozenset({"modeling_deepseek.DeepseekV2Model", f"modeling_deepseek.{NAME}"}),
)
