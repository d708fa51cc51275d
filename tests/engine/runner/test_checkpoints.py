"""What a checkpoint may say is computed as transformers computes it: keys and tensors that are
honoured. Those that are refused are in tests/engine/models/test_options.py and test_tensors.py."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from pds_engine.messages import Sampling
from pds_engine.models import registry
from pds_engine.parallel.collectives import ALONE, Collectives
from runner_driver import Driver
from safetensors.torch import save_file

GREEDY = Sampling(max_tokens=10, temperature=0.0)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FAMILIES = sorted(set(registry.FAMILIES) - {"Gemma3ForConditionalGeneration"})
"""Those whose keys stand in config.json, and not in a part of it."""


def prompts() -> list[list[int]]:
    source = random.Random(8)
    return [[source.randrange(6, 320) for _ in range(length)] for length in (3, 40, 90)]


def other_head(tensors: dict[str, torch.Tensor]) -> None:
    """One of its own, whether the family's model has one or not."""
    generator = torch.Generator().manual_seed(5)
    shape = tensors[EMBEDDING].shape
    tensors[HEAD] = torch.randn(shape, generator=generator) * 0.15


def same_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors[EMBEDDING].clone()


def head_alone(tensors: dict[str, torch.Tensor]) -> None:
    tensors[HEAD] = tensors.pop(EMBEDDING)


def embedding_alone(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(HEAD, None)


def old_leftovers(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(16)


TENSORS = {
    "tied, with another head stored": (other_head, {"tie_word_embeddings": True}),
    "tied, with the same head stored": (same_head, {"tie_word_embeddings": True}),
    "tied, with the head alone stored": (head_alone, {"tie_word_embeddings": True}),
    "tied": (embedding_alone, {"tie_word_embeddings": True}),
    "not tied": (other_head, {"tie_word_embeddings": False}),
    "not tied, by default": (other_head, {"tie_word_embeddings": ...}),
    "leftovers": (old_leftovers, {}),
}


@pytest.mark.parametrize("case", TENSORS)
@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Qwen3ForCausalLM"])
def test_tensors_are_used_as_transformers_uses_them(case, family, variant, driver, reference):
    edit, keys = TENSORS[case]
    path = variant(family, edit, **keys)
    answers = driver(path).run(prompts(), GREEDY, chunk=32)
    assert [a.output for a in answers] == [reference(path, p, 10) for p in prompts()]


OLD: dict[str, Any] = {"rope_parameters": ...}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8}
KEYS: list[dict[str, Any]] = [
    {"rms_norm_eps": 0.1},
    {"rms_norm_eps": ...},
    OLD | {"rope_theta": 500.0},
    OLD | {"rope_scaling": {"type": "linear", "factor": 3.0}},
    OLD | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}, "rope_theta": 500.0},
    OLD | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    OLD | {"rope_scaling": YARN},
    OLD,
    {"hidden_act": "swish"},
    {"pretraining_tp": 2, "attention_dropout": 0.5},
    {"torch_dtype": "bfloat16", "use_cache": False},
]
REFUSED = {
    "Gemma2ForCausalLM": {"hidden_act"},
    "Gemma3ForCausalLM": {"hidden_act", "type"},
    "Phi3ForCausalLM": {"rope_scaling"},
}
"""What a family has otherwise than Llama."""


def refused(family: str, keys: dict[str, Any]) -> bool:
    return bool(REFUSED.get(family, set()) & {*keys, *keys.get("rope_scaling", ())})


@pytest.mark.parametrize(
    ("family", "keys"),
    [
        pytest.param(family, keys, marks=() if (row + column) % 2 else pytest.mark.soak)
        for row, family in enumerate(FAMILIES)
        for column, keys in enumerate(KEYS)
        if not refused(family, keys)
    ],
    ids=str,
)
def test_keys_are_honoured_as_transformers_does(family, keys, variant, driver, reference):
    """Each key in two families, each family with half of them; a soak has all."""
    path = variant(family, **keys)
    answers = driver(path).run(prompts(), GREEDY, chunk=32)
    assert [a.output for a in answers] == [reference(path, p, 10) for p in prompts()]


@pytest.mark.parametrize("family", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_layers_that_all_see_everything(family, variant, driver, reference):
    path = variant(family, layer_types=["full_attention"] * 3)
    answers = driver(path).run(prompts(), GREEDY, chunk=32)
    assert [a.output for a in answers] == [reference(path, p, 10) for p in prompts()]


@pytest.mark.parametrize("window", [..., 512])
def test_a_window_as_long_as_the_context(window, variant, driver, reference):
    path = variant("MistralForCausalLM", sliding_window=window)
    answers = driver(path).run(prompts(), GREEDY, chunk=32)
    assert [a.output for a in answers] == [reference(path, p, 10) for p in prompts()]


def test_what_embeddings_are_multiplied_by_is_rounded_as_they_are(variant):
    """Gemma was trained so: the root of 8 is 2.828125 in bfloat16."""

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            kept = name.endswith(("k_proj.weight", "v_proj.weight"))  # both KV heads are 64 rows
            cut = [slice(8) if n == 64 else slice(None) for n in tensor.shape]
            tensors[name] = tensor[(slice(None), cut[1]) if kept else tuple(cut)].contiguous()

    path = variant("Gemma2ForCausalLM", narrow, hidden_size=8)
    scales = [
        Driver(path, model={"path": path, "dtype": dtype}).decoder.spec.embedding_scale
        for dtype in ("float32", "bfloat16")
    ]
    assert scales == [pytest.approx(8**0.5, rel=1e-6), 2.828125]


LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0],
    "long_factor": [1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 20.0, 30.0],
}
OWN: list[tuple[str, dict[str, Any]]] = [
    ("Gemma2ForCausalLM", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("Gemma2ForCausalLM", {"attn_logit_softcapping": ..., "query_pre_attn_scalar": ...}),
    ("Gemma2ForCausalLM", {"layer_types": ..., "sliding_window": 2}),
    ("Gemma2ForCausalLM", {"layer_types": ["full_attention"] * 4}),
    ("Gemma3ForCausalLM", {"layer_types": ..., "sliding_window_pattern": 2}),
    ("Gemma3ForCausalLM", OLD | {"rope_local_base_freq": 500.0, "rope_theta": 3e5}),
    ("Gemma3ForCausalLM", {"use_bidirectional_attention": None, "cache_implementation": "hybrid"}),
    ("GptOssForCausalLM", OLD | {"layer_types": ...}),
    ("GptOssForCausalLM", {"experts_per_token": 3, "initial_context_length": 4096}),
    ("Phi3ForCausalLM", OLD | {"sliding_window": None}),
    ("Phi3ForCausalLM", OLD | {"rope_scaling": LONG}),
    ("Phi3ForCausalLM", OLD | {"partial_rotary_factor": 0.5, "rope_theta": 500.0}),
]


@pytest.mark.parametrize(("family", "keys"), OWN, ids=str)
def test_a_family_s_own_keys_are_honoured(family, keys, variant, driver, reference):
    path = variant(family, **keys)
    answers = driver(path).run(prompts(), GREEDY, chunk=32)
    assert [a.output for a in answers] == [reference(path, p, 10) for p in prompts()]


def test_a_server_of_long_sequences_has_longrope_s_long_factors(variant, driver, reference):
    """As transformers for a sequence that begins beyond the positions trained on first."""
    path = variant("Phi3ForCausalLM", original_max_position_embeddings=32)
    asked = prompts()[1:]
    answers = driver(path).run(asked, GREEDY, chunk=24)
    assert [a.output for a in answers] == [reference(path, p, 10) for p in asked]


MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.mlp.router"]}


def packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The experts' matrices of `tensors` as blocks of four bits, of random numbers; in `tensors`
    they become the plain ones that these stand for."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    generator = torch.Generator().manual_seed(6)
    found = dict(tensors)
    for name in [n for n in tensors if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, rows, columns = tensors[name].shape
        shape = (experts, columns, rows // 32)
        blocks = torch.randint(0, 256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(122, 126, shape, generator=generator, dtype=torch.uint8)
        tensors[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        assert tensors[name].shape == (experts, rows, columns)
        tensors[name] = tensors[name].contiguous()
        del found[name]
        found |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    return found


@pytest.mark.parametrize("tp", [1, 2])
def test_mxfp4_experts_are_what_transformers_makes_of_them(tp, variant, reference, ranks, tmp_path):
    """A rank of two has 48 columns: half of a group of 32 is another rank's."""
    kept: dict[str, torch.Tensor] = {}
    path = variant("GptOssForCausalLM", lambda tensors: kept.update(packed(tensors)))
    folder = tmp_path / "packed"
    folder.mkdir()
    config = json.loads((path / "config.json").read_text()) | {"quantization_config": MXFP4}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(kept, folder / "model.safetensors")
    found = greedy(ALONE, str(folder)) if tp == 1 else ranks(greedy, tp, path=str(folder))[0]
    assert found == [reference(path, p, 10) for p in prompts()]


def greedy(collectives: Collectives, path: str) -> list[list[int]]:
    return [
        a.output
        for a in Driver(Path(path), collectives=collectives).run(prompts(), GREEDY, chunk=32)
    ]
