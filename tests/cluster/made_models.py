"""Small models of random weights, made for these tests where pods see this working tree."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers
from reference import TIE, Reference
from serving import MODEL, ROOT, Serving
from streams import Question, ask

FOLDER = ROOT / ".cache" / "models"
COMMON: dict[str, Any] = {
    "vocab_size": 1536,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.15,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
EXPERTS: dict[str, Any] = {
    **COMMON,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
}
LATENT: dict[str, Any] = {
    **COMMON,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_shared_experts": 1,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
}
ENOUGH = 10 * TIE
"""By how much the best token must lead: a batch of other requests may round otherwise."""


def made(kind: str, **config: Any) -> Path:
    """A folder with a model of transformers' class `kind`, and the tiny model's tokenizer."""
    folder = FOLDER / kind
    torch.manual_seed(11)
    model = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**config)
    )
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder / name)
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    return folder


def questions(serving: Serving, folder: Path, count: int) -> list[Question]:
    """Chats, whose answers are transformers' own where no two tokens nearly tie."""
    reference = Reference(folder, torch.float32)
    found: list[Question] = []
    with httpx.Client() as client:
        for number in range(20 * count):
            chat = ({"role": "user", "content": f"{number} is what? " * (1 + number % 9)},)
            prompt = reference.chat(list(chat))
            greedy = reference.generate(prompt, 24)
            if min(greedy.leads) < ENOUGH or 1 in greedy.ids:
                continue
            asked = Question(chat, "", max_tokens=len(greedy.ids))
            got = ask(serving.url, asked.body, client=client)
            if got.error:
                raise AssertionError(f"the quiet endpoint fails: {got.error}")
            if got.text != reference.tokenizer.decode(greedy.ids, skip_special_tokens=True):
                raise AssertionError(f"{got.text!r} is not transformers' answer")
            found.append(Question(chat, got.text, len(greedy.ids)))
            if len(found) == count:
                return found
    raise AssertionError(f"only {len(found)} answers are free of ties")
