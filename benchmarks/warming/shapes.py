"""Two models by their config.json alone, and the GEMMs in FP8 that a stage of one runs. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pds_engine.runner.shape_plan import token_counts
from pds_kernels.builders.deep_gemm import Gemm

DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 3,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
}
QWEN: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "attention_bias": False,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
UPSTREAM = range(1, 16385)
"""The numbers of tokens that were compiled before sglang #26567."""
_EXPERT_ROWS = 256
"""Rows of an expert at most, where each has room of its own (masked)."""
_ALIGNED = 128
"""Rows to which an expert's are padded, where they lie one after another (contiguous)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What decides which GEMMs a stage runs."""

    dense: bool
    """It has layers without experts."""
    decodes: bool
    """It has steps of single tokens: experts get masked rows then, and no latent is expanded."""


def five(sms: int) -> tuple[int, ...]:
    """Our numbers of tokens, on a GPU of `sms` multiprocessors."""
    return token_counts(sms)


def weights(config: dict[str, Any], stage: Stage) -> tuple[tuple[int, int], ...]:
    """[rows, columns] of a stage's dense weights in FP8, each once: none where the model has none.

    The names are those of DeepSeek-V3's checkpoint; what reads the same input is one weight.
    """
    if "quantization_config" not in config:
        return ()
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], "kv_lora_rank"
    nope, rope, v = (config[f"{name}_head_dim"] for name in ("qk_nope", "qk_rope", "v"))
    shared = config["n_shared_experts"] * config["moe_intermediate_size"]
    found = [
        (config["q_lora_rank"] + config[rank] + rope, hidden),  # q_a and kv_a
        (heads * (nope + rope), config["q_lora_rank"]),  # q_b
        (heads * (nope + v), config[rank]),  # kv_b, which chunks expand
        (hidden, heads * v),  # o
        (2 * shared, hidden),
        (hidden, shared),
    ]
    if stage.dense:
        found += [(2 * config["intermediate_size"], hidden), (hidden, config["intermediate_size"])]
    return tuple(found)


def gemms(config: dict[str, Any], stage: Stage, counts: Sequence[int]) -> Iterator[Gemm]:
    """Calls of DeepGEMM in a stage's steps of so many tokens, whole experts on one rank.

    Contiguous experts have so many rows, padded; masked ones so many each, as far as they may.
    """
    dense = weights(config, stage)
    for n, k in dense:
        yield from (Gemm(m, n, k) for m in counts)
    if not dense:
        return
    hidden, columns = config["hidden_size"], config["moe_intermediate_size"]
    groups = config["n_routed_experts"]
    for n, k in ((2 * columns, hidden), (hidden, columns)):
        for m in dict.fromkeys(-(-count // _ALIGNED) * _ALIGNED for count in counts):
            yield Gemm(m, n, k, "contiguous", groups)
        if stage.decodes:
            for rows in sorted({min(count, _EXPERT_ROWS) for count in counts}):
                yield Gemm(_EXPERT_ROWS, n, k, "masked", groups, rows)
