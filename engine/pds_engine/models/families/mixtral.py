"""Mixtral: Mistral with a mixture of experts in every layer."""

from pds_engine.models.components import (
    FULL,
    SLIDING,
    all_alike,
    decoder,
    gqa,
    layer_count,
    window,
)
from pds_engine.models.config_json import number, whole
from pds_engine.models.family import Family
from pds_engine.models.names import ExpertNames, Names
from pds_engine.models.sparse import count, top_k
from pds_engine.spec import DecoderSpec, ExpertsSpec, GateSpec, Json, LayerSpec

NAME = "MixtralForCausalLM"


def spec(config: Json) -> DecoderSpec:
    """Family.spec of Mixtral: a token's weights sum to 1."""
    size = window(config)
    all_alike(config, FULL if size is None else SLIDING)
    layer = LayerSpec(
        attention=gqa(config, kv_heads=8, theta=1e6, window=size),
        feed=ExpertsSpec(
            experts=count(config),
            top_k=top_k(config),
            columns=whole(config, "intermediate_size"),
            gate=GateSpec(renormalise=True),
        ),
    )
    eps = number(config, "rms_norm_eps", missing=1e-5)
    return decoder(config, NAME, [layer] * layer_count(config), norm_eps=eps)


FAMILY = Family(
    architecture=NAME,
    model_type="mixtral",
    spec=spec,
    names=Names(
        experts=ExpertNames(
            router="block_sparse_moe.gate",
            gate="block_sparse_moe.experts.{}.w1",
            up="block_sparse_moe.experts.{}.w3",
            down="block_sparse_moe.experts.{}.w2",
        )
    ),
    reads=frozenset({"num_experts", "num_local_experts", "num_experts_per_tok"}),
)
