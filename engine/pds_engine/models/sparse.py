"""What config.json says of a mixture of experts, in the words that several families use.
No torch.
"""

from pds_engine.errors import ConfigError
from pds_engine.models.components import dense, layer_count
from pds_engine.models.config_json import flag, whole
from pds_engine.spec import DenseSpec, ExpertsSpec, GateSpec, Json

QWEN_KEYS = frozenset(
    {
        "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size",
        "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers",
    }
)  # fmt: skip
"""What `qwen` reads."""
_COUNT = ("num_experts", "num_local_experts")
MOST_EXPERTS = 10_000
"""Of a layer: see config_json.MOST."""


def count(config: Json) -> int:
    """Experts of a layer: num_experts, or num_local_experts.

    Raises:
        ConfigError: it is missing, or both are there and differ.
    """
    found = {
        key: whole(config, key, most=MOST_EXPERTS) for key in _COUNT if config.get(key) is not None
    }
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    if found:
        raise ConfigError(f"config.json: num_experts and num_local_experts differ: {found}")
    raise ConfigError(
        "config.json: num_experts or num_local_experts must be a whole number above 0, got None"
    )


def top_k(config: Json) -> int:
    """num_experts_per_tok: the experts of a token.

    Raises:
        ConfigError: it is missing, or above the number of experts.
    """
    chosen, experts = whole(config, "num_experts_per_tok"), count(config)
    if chosen > experts:
        raise ConfigError(
            f"config.json: num_experts_per_tok {chosen} is above the {experts} experts of a layer"
        )
    return chosen


def qwen(
    config: Json, *, shared_columns: int = 0, shared_gate: bool = False
) -> list[DenseSpec | ExpertsSpec]:
    """The feed-forward block of each layer of Qwen2-MoE and Qwen3-MoE.

    Every decoder_sparse_step-th layer is a mixture, unless mlp_only_layers names it.

    Raises:
        ConfigError: a key is missing or has a value that cannot be.
    """
    step = whole(config, "decoder_sparse_step", missing=1)
    mixture = ExpertsSpec(
        experts=count(config),
        top_k=top_k(config),
        columns=whole(config, "moe_intermediate_size"),
        gate=GateSpec(renormalise=flag(config, "norm_topk_prob")),
        shared_columns=shared_columns,
        shared_gate=shared_gate,
    )
    plain = _mlp_only(config)
    return [
        mixture if at not in plain and (at + 1) % step == 0 else dense(config)
        for at in range(layer_count(config))
    ]


def _mlp_only(config: Json) -> frozenset[int]:
    layers = config.get("mlp_only_layers")
    if layers is None:
        return frozenset()
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise ConfigError(
            f"config.json: mlp_only_layers must be a list of layers' numbers, got {layers!r}"
        )
    return frozenset(layers)
