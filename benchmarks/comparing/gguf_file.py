"""Writes a GGUF file, for llama.cpp, from a folder of models.py: the same weights, in bfloat16.

    python gguf_file.py FOLDER FILE

It runs in llama.cpp's environment. The file has no tokenizer: prompts are ids.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
}
EXPERTS = {"gate_proj": "ffn_gate_exps", "up_proj": "ffn_up_exps", "down_proj": "ffn_down_exps"}
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
ARCHITECTURES = {
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "LlamaForCausalLM": "llama",
}


class Tensors:
    """Those of a folder, as bits of bfloat16, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self._found: dict[str, tuple[Path, int, list[int]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                for name, about in json.loads(file.read(size)).items():
                    if name != "__metadata__":
                        begin = 8 + size + about["data_offsets"][0]
                        self._found[name] = (path, begin, about["shape"])

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def read(self, name: str) -> Any:
        path, begin, shape = self._found[name]
        return np.memmap(path, np.uint16, "r", begin, tuple(shape))


def name(theirs: str) -> str:
    """A tensor's name in GGUF, of one that is stored as it is."""
    if theirs in OUTER:
        return OUTER[theirs]
    _, _, layer, rest = theirs.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def permuted(rows: Any, heads: int) -> Any:
    """llama.cpp rotates neighbouring pairs for this architecture, transformers halves of a head."""
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(rows.shape)


def describe(writer: Any, config: dict[str, Any]) -> None:
    import gguf

    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def write(folder: Path, target: Path) -> None:
    import gguf

    config, tensors = json.loads((folder / "config.json").read_text()), Tensors(folder)
    architecture = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(target, architecture, use_temp_file=False)
    describe(writer, config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}

    def add(theirs: str, bits: Any) -> None:
        if bits.ndim == 1 or theirs.endswith("ffn_gate_inp.weight"):
            wide = (bits.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(theirs, wide)
            return
        shape = (*bits.shape[:-1], bits.shape[-1] * 2)
        raw = np.ascontiguousarray(bits).view(np.uint8).reshape(shape)
        writer.add_tensor(theirs, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)

    for theirs in tensors:
        if ".experts." in theirs:
            continue
        bits = tensors.read(theirs)
        part = theirs.removesuffix(".weight").rpartition(".")[2]
        if architecture == "llama" and part in heads:
            bits = permuted(np.array(bits), heads[part])
        add(name(theirs), bits)
    for layer in range(config["num_hidden_layers"] if "num_experts" in config else 0):
        for part, ours in EXPERTS.items():
            prefix = f"model.layers.{layer}.mlp.experts"
            every = range(config["num_experts"])
            stacked = np.stack([tensors.read(f"{prefix}.{at}.{part}.weight") for at in every])
            add(f"blk.{layer}.{ours}.weight", stacked)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
