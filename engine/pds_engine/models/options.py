"""Which keys of config.json may stand there: each is honoured, known to change nothing, or refused.

read        the family's spec computes by it
fixed       only at the value that this engine computes
harmless    names, training, and defaults of generation
unknown     switched off (null, false, 0, "", [], {}; a factor of 1): ignored
            sounds like mathematics: refused, since nobody would notice a wrong answer
            anything else: ignored, and named in the log
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from pds_engine.errors import ConfigError
from pds_engine.models.family import Family
from pds_engine.spec import Json

logger = logging.getLogger("pds.models")

READ = frozenset(
    {
        "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size",
        "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
        "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "sliding_window",
        "rope_theta", "rope_scaling", "rope_parameters", "layer_types", "auto_map",
        # models/quantized.py
        "quantization_config", "compression_config", "quantization",
    }
)  # fmt: skip
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "is_causal": (True,),
    "transformers_weights": (None,),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_encoder_decoder": (False, None),
    "partial_rotary_factor": (1.0, None),
    "pruned_heads": ({}, None),
    "per_layer_config": (None, {}),
}
"""Allowed values; the first is what a key that is not there means."""

_NAMES = frozenset(
    {
        "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "dtype",
        "torch_dtype", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task",
        "tokenizer_class", "return_dict", "output_attentions", "output_hidden_states",
        "output_router_logits", "torchscript", "is_decoder", "bos_token_id", "eos_token_id",
        "pad_token_id", "sep_token_id", "decoder_start_token_id", "prefix", "task_specific_params",
    }
)  # fmt: skip
"""What it is called, how its answers are labelled, and ids that the tokenizer's files decide."""
_HOW = frozenset(
    {
        "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
        "_attn_implementation_autoset", "_flash_attn_2_enabled", "use_flash_attention",
        "use_flash_attn", "experts_implementation", "_experts_implementation", "use_cache",
        "pretraining_tp", "chunk_size_feed_forward", "use_bfloat16", "cache_implementation",
        "max_window_layers", "ep_size",
    }
)  # fmt: skip
"""By which kernels, or in how many pieces, the same numbers are computed; and a bound that counts
only with options that are refused."""
_TRAINING = frozenset(
    {
        "initializer_range",
        "gradient_checkpointing",
        "neftune_noise_alpha",
        "seq_aux",
        "router_jitter_noise",
    }
)
"""Beside these, any key with a word of _IDLE in it."""
_GENERATION = frozenset(
    {
        "max_length", "min_length", "max_new_tokens", "min_new_tokens", "do_sample", "num_beams",
        "num_beam_groups", "early_stopping", "temperature", "top_k", "top_p", "min_p", "typical_p",
        "epsilon_cutoff", "eta_cutoff", "repetition_penalty", "encoder_repetition_penalty",
        "length_penalty", "diversity_penalty", "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size", "bad_words_ids", "force_words_ids", "suppress_tokens",
        "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id",
        "num_return_sequences", "output_scores", "return_dict_in_generate",
        "remove_invalid_values", "exponential_decay_length_penalty", "sequence_bias",
        "guidance_scale", "renormalize_logits",
    }
)  # fmt: skip
"""Defaults of transformers' generate(): here a request says how tokens are chosen."""
_HARMLESS = _NAMES | _HOW | _TRAINING | _GENERATION

_OFF: tuple[Any, ...] = (None, False, 0, "", [], {})
_FACTOR = re.compile(r"multiplier|factor|scal(e|ing)$")
_IDLE = re.compile(r"dropout|pdrop$|drop_path|loss|flash|sdpa")
_MATHEMATICS = re.compile(
    r"multiplier|factor|scal|cap|window|sliding|chunk|bias|norm|rope|rotary|alibi|nope|yarn"
    r"|quant|compress|expert|moe|router|attn|attention|head|kv|qk|mup|residual|logit|emb|lora"
    r"|adapter|layer|position|clip|limit|beta|depth|dim|width|act|sparse|mamba|ssm|conv(?!er)"
    r"|sink|gate|causal|bidir|ntk|alpha|parallel|temperature|mask|mla|interleave|ratio|(^|_)bits?(_|$)"
    r"|(^|_)[48]bit|hqq|awq|gptq|prefix_lm|fan_in"
)
"""Words in which transformers' decoders name options that change the result: Granite's multipliers,
Gemma's soft caps, Cohere's logit_scale, MiniCPM's scale_emb, OLMo's clip_qkv, Llama 4's chunks."""


def check(config: Json, family: Family) -> None:
    """Refuse what would change the result and is not computed.

    Raises:
        ConfigError: names the key, its value and what is served.
    """
    _check_kind(config, family)
    fixed = {key: values for key, values in FIXED.items() if key not in family.reads}
    for key, allowed in {**fixed, **family.fixed}.items():
        value = config.get(key, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"config.json: {key} {value!r} is not supported, only {allowed[0]!r} is"
            )
    known = READ | family.reads | _HARMLESS | set(FIXED) | set(family.fixed)
    unknown = {k: v for k, v in config.items() if k not in known and not _off(k, v)}
    ignored = {k: v for k, v in unknown.items() if not _IDLE.search(k.lower())}
    for key, value in ignored.items():
        if _MATHEMATICS.search(key.lower()):
            raise ConfigError(
                f"config.json: {key} {value!r} is not known, and may change what "
                f"{family.architecture} computes",
                hint="if the model does not need it, take it out of config.json",
            )
    if ignored:
        logger.warning("config.json: ignored %s", ", ".join(sorted(ignored)))


def _is_ours(name: str, code: Any, family: Family) -> bool:
    """Whether auto_map's `name` is of no model, or of one that the family computes. `code` may have
    the repository before it."""
    return "Model" not in name or str(code).rpartition("--")[2] in family.own_code


def _off(key: str, value: Any) -> bool:
    return value in _OFF or (value == 1 and value is not True and bool(_FACTOR.search(key)))


def _check_kind(config: Json, family: Family) -> None:
    kind = config.get("model_type", family.model_type)
    if kind != family.model_type:
        raise ConfigError(
            f"config.json: model_type {kind!r} is not that of {family.architecture}",
            hint=f"its model_type is {family.model_type!r}",
        )
    own = config.get("auto_map") or {}
    if not isinstance(own, dict) or not all(_is_ours(*each, family) for each in own.items()):
        raise ConfigError(
            f"config.json: auto_map {own!r} says that the model brings its own code, which is "
            "not run",
            hint=f"if it computes what {family.architecture} does, take auto_map out",
        )
