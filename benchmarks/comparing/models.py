"""Models with random weights, as folders of the Hugging Face layout: made here, for every engine.

A token is a word (" w17" is token 17), so that an engine that takes text alone gets the same
prompts as those that take ids.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

DONE = "made.json"
SHARD_BYTES = 1 << 30
PERIOD = (1 << 22) - 3
"""Random numbers that are drawn; an odd number, so that no two rows of a matrix are alike."""
EOS = 1


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides a model's speed. Grouped-query attention, SwiGLU, RMS norm, rotary positions."""

    name: str
    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    """Inner width of the feed-forward part; of each expert in a mixture."""
    vocab: int
    experts: int = 0
    chosen: int = 0
    """Experts that a token passes."""
    tied: bool = False
    qk_norm: bool = True
    more: tuple[tuple[str, Any], ...] = ()
    """Further keys of config.json."""

    def layer(self) -> dict[str, tuple[int, ...]]:
        """Tensors of one layer, by name, as [out, in]."""
        width, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        found: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (self.hidden,),
            "post_attention_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (width, self.hidden),
            "self_attn.k_proj.weight": (kv, self.hidden),
            "self_attn.v_proj.weight": (kv, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, width),
        }
        if self.qk_norm:
            norms = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
            found |= dict.fromkeys(norms, (self.head_dim,))
        prefixes = ["mlp"]
        if self.experts:
            found["mlp.gate.weight"] = (self.experts, self.hidden)
            prefixes = [f"mlp.experts.{at}" for at in range(self.experts)]
        for prefix in prefixes:
            found[f"{prefix}.gate_proj.weight"] = (self.ffn, self.hidden)
            found[f"{prefix}.up_proj.weight"] = (self.ffn, self.hidden)
            found[f"{prefix}.down_proj.weight"] = (self.hidden, self.ffn)
        return found

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """All of them, in the order in which they are stored."""
        yield "model.embed_tokens.weight", (self.vocab, self.hidden)
        for at in range(self.layers):
            for name, size in self.layer().items():
                yield f"model.layers.{at}.{name}", size
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)

    @property
    def parameters(self) -> int:
        return sum(prod(size) for _, size in self.tensors())

    @property
    def multiplied(self) -> int:
        """Parameters of one layer's matrices that one token is multiplied by."""
        sizes = {name: prod(size) for name, size in self.layer().items() if len(size) == 2}
        idle = sum(size for name, size in sizes.items() if ".experts." in name)
        passed = idle * self.chosen // self.experts if self.experts else 0
        return sum(sizes.values()) - idle + passed

    def step_bytes(self) -> int:
        """Of the weights that a decode step of one token reads, in bfloat16: layers and head."""
        return 2 * (self.layers * self.multiplied + self.vocab * self.hidden)

    def prefill_flops(self, length: int) -> int:
        """Of a prompt of `length` tokens: matrices, causal attention, and one row of the head."""
        attention = 2 * length * self.heads * self.head_dim  # 4 · length / 2, for each token
        layers = self.layers * (2 * self.multiplied + attention)
        return length * layers + 2 * self.vocab * self.hidden

    def config(self) -> dict[str, Any]:
        """config.json."""
        found: dict[str, Any] = {
            "architectures": [self.architecture],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": None,
            "eos_token_id": EOS,
            "pad_token_id": 0,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.ffn,
            "max_position_embeddings": 4096,
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": self.tied,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab,
        }
        if self.experts:
            found |= {
                "decoder_sparse_step": 1,
                "mlp_only_layers": [],
                "moe_intermediate_size": self.ffn,
                "norm_topk_prob": True,
                "num_experts": self.experts,
                "num_experts_per_tok": self.chosen,
                "router_aux_loss_coef": 0.001,
            }
        return found | dict(self.more)


_QWEN3 = (
    ("model_type", "qwen3"),
    ("max_window_layers", 8),
    ("sliding_window", None),
    ("use_sliding_window", False),
)
_MOE = (
    ("model_type", "qwen3_moe"),
    ("max_window_layers", 8),
    ("sliding_window", None),
    ("use_sliding_window", False),
)
_LLAMA = (
    ("model_type", "llama"),
    ("mlp_bias", False),
    ("pretraining_tp", 1),
    ("rms_norm_eps", 1e-5),
    ("rope_theta", 500000.0),
)
DENSE = Shape("dense", "Qwen3ForCausalLM", 512, 8, 8, 4, 64, 1536, 32000, more=_QWEN3)
"""57.9 million parameters, 41.5 million of which a decoded token is multiplied by."""
MIXTURE = Shape(
    "mixture", "Qwen3MoeForCausalLM", 512, 8, 8, 4, 64, 256, 32000, 16, 4, more=_MOE
)  # fmt: skip
"""89.5 million parameters, 16 experts of which a token passes 4."""
TINY = Shape("tiny", "Qwen3ForCausalLM", 128, 2, 4, 2, 32, 256, 1024, more=_QWEN3)
TINY_MIXTURE = Shape(
    "tiny-mixture", "Qwen3MoeForCausalLM", 128, 2, 4, 2, 32, 64, 1024, 4, 2, more=_MOE
)  # fmt: skip
LLAMA_3B = Shape(
    "llama-3b", "LlamaForCausalLM", 3072, 28, 24, 8, 128, 8192, 128256,
    tied=True, qk_norm=False, more=_LLAMA,
)  # fmt: skip
"""Llama-3.2-3B's shape: 3.21 billion parameters, 6.4 GB in bfloat16."""
TINY_LLAMA = Shape(
    "tiny-llama", "LlamaForCausalLM", 128, 2, 4, 2, 32, 256, 1024,
    tied=True, qk_norm=False, more=_LLAMA,
)  # fmt: skip


def make(shape: Shape, parent: Path) -> Path:
    """The folder of a model of this shape below `parent`; made where it is not there yet."""
    folder = parent / shape.name
    wanted = json.dumps([shape.config(), shape.parameters])
    done = folder / DONE
    if done.exists() and done.read_text() == wanted:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1))
    generation = {"eos_token_id": EOS, "pad_token_id": 0, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    _write_tokenizer(folder, shape.vocab)
    _write_weights(folder, shape)
    done.write_text(wanted)
    return folder


def text(ids: Sequence[int]) -> str:
    """What the tokenizer reads as these ids."""
    return "".join(f" w{id}" for id in ids)


def _write_tokenizer(folder: Path, vocab: int) -> None:
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    bytes_["use_regex"] = False
    split = {"type": "Split", "pattern": {"Regex": r" w\d+"}, "behavior": "Isolated"}
    special = [(0, "<pad>"), (EOS, "<eos>"), (2, "<unk>")]
    words = {f"\u0120w{id}": id for id in range(3, vocab)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id, "content": content, "single_word": False, "lstrip": False,
                "rstrip": False, "normalized": False, "special": True,
            }
            for id, content in special
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence", "pretokenizers": [{**split, "invert": False}, bytes_]
        },
        "post_processor": None,
        "decoder": bytes_,
        "model": {
            "type": "WordLevel",
            "vocab": {content: id for id, content in special} | words,
            "unk_token": "<unk>",
        },
    }  # fmt: skip
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": 4096,
        "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _write_weights(folder: Path, shape: Shape) -> None:
    """Files of about a gigabyte each, so that memory holds no more than one of them."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    normal = torch.randn(PERIOD).mul_(0.02).to(torch.bfloat16).repeat(2)
    shards: list[list[str]] = []
    held: dict[str, Any] = {}

    def flush() -> None:
        shards.append(list(held))
        save_file(held, folder / f"part-{len(shards):05}.safetensors", {"format": "pt"})
        held.clear()

    for name, size in shape.tensors():
        count = prod(size)
        if len(size) == 1:
            held[name] = torch.ones(size, dtype=torch.bfloat16)
        else:
            # Matrices begin at different places of one long row of random numbers.
            begin = int(torch.randint(PERIOD, ()))
            row = normal[begin : begin + PERIOD]
            held[name] = row.repeat(-(-count // PERIOD))[:count].reshape(size)
        if sum(tensor.nbytes for tensor in held.values()) >= SHARD_BYTES:
            flush()
    if held:
        flush()
    _name_shards(folder, shards)


def _name_shards(folder: Path, shards: Sequence[Sequence[str]]) -> None:
    """As a checkpoint of the Hub has them: one model.safetensors, or several and an index."""
    if len(shards) == 1:
        (folder / "part-00001.safetensors").rename(folder / "model.safetensors")
        return
    where: Mapping[str, str] = {}
    for at, names in enumerate(shards, 1):
        name = f"model-{at:05}-of-{len(shards):05}.safetensors"
        (folder / f"part-{at:05}.safetensors").rename(folder / name)
        where = {**where, **dict.fromkeys(names, name)}
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
