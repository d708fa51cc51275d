"""What DeepSeek's families read from config.json alike: latent attention, dense layers, and layers
of experts behind them. No torch."""

from collections.abc import Callable

from pds_engine.errors import ConfigError
from pds_engine.models.components import dense, layer_count
from pds_engine.models.config_json import count, whole
from pds_engine.models.positions import attention_scale, rope
from pds_engine.models.sparse import MOST_EXPERTS
from pds_engine.spec import ExpertsSpec, GateSpec, Json, LayerSpec, MlaSpec

READS = frozenset(
    {
        "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "first_k_dense_replace", "n_routed_experts", "n_shared_experts", "num_experts_per_tok",
        "moe_intermediate_size", "n_group", "topk_group", "routed_scaling_factor",
        "qk_head_dim",  # transformers writes the sum of the two parts, and computes it anew
    }
)  # fmt: skip
"""Keys that both families read; both have defaults for all but the sizes of any decoder."""


def mla(config: Json, *, interleaved: bool) -> MlaSpec:
    """Latent attention. `interleaved`: the checkpoint's rotated pairs are neighbours.

    Raises:
        ConfigError: a size is missing, num_key_value_heads says that heads share keys, or head_dim
            that other dimensions are rotated.
    """
    heads = whole(config, "num_attention_heads")
    shared = whole(config, "num_key_value_heads", missing=heads, null=heads)
    if shared != heads:
        raise ConfigError(
            f"config.json: num_key_value_heads {shared} must be num_attention_heads {heads}",
            hint="in latent attention each head has keys and values of its own",
        )
    nope, rotated = whole(config, "qk_nope_head_dim"), whole(config, "qk_rope_head_dim")
    if config.get("head_dim", rotated) not in (None, rotated):
        raise ConfigError(
            f"config.json: head_dim {config['head_dim']!r} must be qk_rope_head_dim {rotated}",
            hint="transformers rotates so many dimensions; DeepSeek's own configurations have none",
        )
    told = config.get("q_lora_rank")
    return MlaSpec(
        heads=heads,
        q_rank=None if told is None else whole(config, "q_lora_rank"),
        kv_rank=whole(config, "kv_lora_rank"),
        nope_dim=nope,
        rope_dim=rotated,
        value_dim=whole(config, "v_head_dim"),
        rope=rope(
            config, whole(config, "max_position_embeddings"), rotated, interleaved=interleaved
        ),
        scale=attention_scale(config, nope + rotated),
    )


def dense_first(
    config: Json, attention: MlaSpec, experts: Callable[[Json], ExpertsSpec]
) -> list[LayerSpec]:
    """first_k_dense_replace layers with a dense block, and layers of experts behind them.

    Raises:
        ConfigError: their number is none, or as of `experts`.
    """
    first, total = count(config, "first_k_dense_replace"), layer_count(config)
    layers: list[LayerSpec] = []
    if first:
        layers += [LayerSpec(attention=attention, feed=dense(config))] * min(first, total)
    if first < total:
        layers += [LayerSpec(attention=attention, feed=experts(config))] * (total - first)
    return layers


def experts(config: Json, gate: GateSpec) -> ExpertsSpec:
    """The experts of a layer, n_shared_experts of which every token passes as one block.

    Raises:
        ConfigError: a size is missing, experts are not equal groups, or a token is to have more
            groups, or more experts, than there are.
    """
    total = whole(config, "n_routed_experts", most=MOST_EXPERTS)
    top = whole(config, "num_experts_per_tok")
    if total % gate.groups:
        raise ConfigError(
            f"config.json: n_routed_experts {total} are not n_group {gate.groups} equal groups"
        )
    if gate.top_groups > gate.groups:
        raise ConfigError(
            f"config.json: topk_group {gate.top_groups} is above the {gate.groups} groups of "
            "n_group"
        )
    eligible = total // gate.groups * gate.top_groups
    if top > eligible:
        raise ConfigError(
            f"config.json: num_experts_per_tok {top} is above the {eligible} experts that a token "
            f"may choose from",
            hint="they are n_routed_experts / n_group · topk_group",
        )
    columns = whole(config, "moe_intermediate_size")
    return ExpertsSpec(
        experts=total,
        top_k=top,
        columns=columns,
        gate=gate,
        shared_columns=columns * whole(config, "n_shared_experts"),
    )
