"""Small models of random weights, one of each family, as transformers makes and saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers

LLAMA3_POSITIONS = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GEMMA3_POSITIONS = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GPT_OSS_POSITIONS = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "truncate": False,
}
GEMMA3 = {"num_hidden_layers": 7, "query_pre_attn_scalar": 24, "sliding_window": 37}
DEEPSEEK_POSITIONS = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 64,
}
DEEPSEEK = {
    "num_key_value_heads": 4,
    "head_dim": 8,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "first_k_dense_replace": 1,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 40,
}
MODELS: dict[str, dict[str, Any]] = {
    # as V2-Lite: queries are projected at once, and experts chosen from all
    "DeepseekV2ForCausalLM": {
        **DEEPSEEK,
        "q_lora_rank": None,
        "kv_lora_rank": 24,
        "v_head_dim": 12,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.5,
    },
    "DeepseekV3ForCausalLM": {
        **DEEPSEEK,
        "q_lora_rank": 40,
        "kv_lora_rank": 32,
        "v_head_dim": 24,
        "n_group": 4,
        "topk_group": 2,
        "rope_parameters": DEEPSEEK_POSITIONS,
    },
    # the caps are low enough to be felt, and a window is cut by pages and by chunks
    "Gemma2ForCausalLM": {
        "num_hidden_layers": 4,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 8.0,
        "sliding_window": 37,
    },
    "Gemma3ForCausalLM": GEMMA3 | {"final_logit_softcapping": 8.0},
    "Gemma3ForConditionalGeneration": GEMMA3 | {"rope_parameters": GEMMA3_POSITIONS},
    "GptOssForCausalLM": {
        "num_local_experts": 8,
        "num_experts_per_tok": 3,
        "sliding_window": 37,
        "rope_parameters": GPT_OSS_POSITIONS,
    },
    "LlamaForCausalLM": {"rope_parameters": LLAMA3_POSITIONS},
    "MistralForCausalLM": {"sliding_window": 37, "vocab_size": 322},
    "MixtralForCausalLM": {"num_local_experts": 4, "sliding_window": 40},
    "Olmo2ForCausalLM": {},
    "Phi3ForCausalLM": {
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "original_max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.25, 1.5, 2.0, 2.5],
            "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 16.0],
        },
        "sliding_window": 37,
    },
    "Qwen2ForCausalLM": {"vocab_size": 321},
    "Qwen2MoeForCausalLM": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 80,
        "decoder_sparse_step": 2,
    },
    "Qwen3ForCausalLM": {"tie_word_embeddings": True},
    "Qwen3MoeForCausalLM": {
        "vocab_size": 323,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
        "mlp_only_layers": [1],
    },
}
"""Each family that is served, and in what its test's model differs from the others'. Vocabularies
of 321 to 323 tokens divide into neither two nor four shards."""
EXPERTS = frozenset(name for name, keys in MODELS.items() if any("expert" in key for key in keys))
"""Those with mixtures of experts."""
CLASSES = {
    "Gemma3ForCausalLM": "Gemma3TextConfig",
    "Gemma3ForConditionalGeneration": "Gemma3TextConfig",
}
"""Configurations that are not called as their models are."""
EYES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
"""What sees the images of a model that sees some."""


def saved(architecture: str, folder: Path) -> Path:
    """A model of random weights of this family, in `folder`."""
    kind = CLASSES.get(architecture, architecture.replace("ForCausalLM", "Config"))
    config = getattr(transformers, kind)(
        **{
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 512,
            "initializer_range": 0.15,
            "eos_token_id": None,
            "bos_token_id": None,
            "pad_token_id": None,
        }
        | MODELS[architecture]
    )
    if architecture == "Gemma3ForConditionalGeneration":
        config = transformers.Gemma3Config(
            text_config=config, vision_config=EYES, image_token_index=319
        )
    torch.manual_seed(7)
    model = getattr(transformers, architecture)(config)
    offset = 1 if architecture.startswith("Gemma") else 0
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(weight, 0.5 - offset, 1.5 - offset)
        elif name.endswith("bias"):
            torch.nn.init.uniform_(weight, -1, 1)
        elif name.endswith(("mlp.gate.weight", "mlp.router.weight")):
            torch.nn.init.normal_(weight, std=0.3)
        elif name.endswith("sinks"):
            torch.nn.init.uniform_(weight, -1, 3)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):
            torch.nn.init.uniform_(buffer, -0.1, 0.1)
    model.save_pretrained(folder)
    return folder
