"""How much memory a rank needs to load its share of a checkpoint of several files.

    peak <= the rank's own weights
          + the largest tensor that is cut by columns, as it is stored: pages of its file
          + the parts of the largest tensor that is joined from several: gate and up. Experts' are
            read one by one into their places
          + the largest part that is read, as it is stored and in float32, if it is quantized

The kernel counts, in a process of its own: pages of mapped files are in its count, too.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from stored_weights import E4M3

TP, RANK = 8, 5
HIDDEN, COLUMNS, VOCAB, LAYERS = 1024, 4096, 4096, 2
EXPERTS, EXPERT_COLUMNS = 4, 1024
SPARE = 3 << 20
"""Bytes for what is no weight: the decoder, its table of positions, the allocator's own pages."""
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
"""What is freed goes back to the kernel at once: counted is what is held, not what malloc keeps."""
LOAD = f"""
import json, sys
from pathlib import Path
import torch
from pds_engine.config import EngineConfig
from pds_engine.models.loader import load
from pds_engine.models.registry import check
from pds_engine.models.weights import tensors
from pds_engine.sizing import sizes
from pds_engine.parallel.collectives import Alone

class Shard(Alone):
    def __init__(self):
        self.rank, self.size = {RANK}, {TP}

def status():
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines)
    return {{key: int(value.split()[0]) << 10 for key, value in pairs if value.endswith("kB")}}

torch.set_num_threads(1)
config = EngineConfig.model_validate({{
    "model": {{"path": sys.argv[1], "dtype": "float32"}},
    "max_model_len": 64,
    "parallelism": {{"tp": {TP}}},
}})
load(config, {RANK}, torch.device("cpu"), Shard())  # pages of torch's own code are in now
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: proc(5)
before = status()
decoder = load(config, {RANK}, torch.device("cpu"), Shard())
after = status()
print(json.dumps({{
    "counted": sizes(config, check(config))[{RANK}].weights,
    "share": sum(t.untyped_storage().nbytes() for t in tensors(decoder.weights)),
    "peak": after["VmHWM"] - before["VmRSS"],
    "anonymous": after["RssAnon"] - before["RssAnon"],
    "files": after["RssFile"] - before["RssFile"],
}}))
"""


def matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.ones(rows, columns)


def make(folder: Path, *, fp8: bool, mixed: bool) -> None:
    """A model of one file a layer and one for the rest; in FP8, each layer's matrices are. `mixed`:
    of Mixtral's kind, with a mixture of experts in each layer."""
    keys = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": HIDDEN,
        "intermediate_size": COLUMNS,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    if mixed:
        keys |= {
            "architectures": ["MixtralForCausalLM"],
            "intermediate_size": EXPERT_COLUMNS,
            "num_local_experts": EXPERTS,
            "num_experts_per_tok": 2,
        }
    if fp8:
        keys["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(keys))
    rest = {
        "model.embed_tokens.weight": matrix(VOCAB, HIDDEN),
        "model.norm.weight": torch.ones(HIDDEN),
    }
    files = {"rest.safetensors": rest | {"lm_head.weight": matrix(VOCAB, HIDDEN)}}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        found = {
            f"{name}input_layernorm.weight": torch.ones(HIDDEN),
            f"{name}post_attention_layernorm.weight": torch.ones(HIDDEN),
        }
        shapes = {f"self_attn.{part}_proj": (HIDDEN, HIDDEN) for part in "qkvo"}
        if mixed:
            found[f"{name}block_sparse_moe.gate.weight"] = matrix(EXPERTS, HIDDEN)
            for expert in range(EXPERTS):
                of_expert = f"block_sparse_moe.experts.{expert}."
                shapes |= {f"{of_expert}w{n}": (EXPERT_COLUMNS, HIDDEN) for n in (1, 3)}
                shapes[f"{of_expert}w2"] = (HIDDEN, EXPERT_COLUMNS)
        else:
            shapes |= {f"mlp.{part}_proj": (COLUMNS, HIDDEN) for part in ("gate", "up")}
            shapes["mlp.down_proj"] = (HIDDEN, COLUMNS)
        for module, shape in shapes.items():
            found[f"{name}{module}.weight"] = matrix(*shape).to(E4M3 if fp8 else torch.float32)
            if fp8:
                blocks = [size // 128 for size in shape]
                found[f"{name}{module}.weight_scale_inv"] = matrix(*blocks)
        files[f"layer-{layer}.safetensors"] = found
    for file, held in files.items():
        save_file(held, folder / file)
    index = {name: file for file, held in files.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize("mixed", [False, True], ids=["dense", "experts"])
@pytest.mark.parametrize("fp8", [False, True], ids=["float32", "fp8"])
def test_a_rank_holds_its_share_and_one_tensor(tmp_path, fp8, mixed):
    make(tmp_path, fp8=fp8, mixed=mixed)
    ran = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        env=os.environ | MALLOC | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    seen = json.loads(ran.stdout)
    columns, blocks = (EXPERT_COLUMNS, EXPERTS) if mixed else (COLUMNS, 1)
    layer = 4 * HIDDEN * HIDDEN + blocks * 3 * HIDDEN * columns
    whole = (2 * LAYERS + 1) * HIDDEN + (LAYERS * EXPERTS * HIDDEN if mixed else 0)
    share = 4 * ((LAYERS * layer + 2 * VOCAB * HIDDEN) // TP + whole)
    assert seen["share"] == seen["counted"] == share
    down, part = HIDDEN * columns * (1 if fp8 else 4), HIDDEN * columns // TP
    packed = 5 * part if fp8 else 0
    assert seen["peak"] <= share + down + packed + 8 * part + SPARE
    assert seen["anonymous"] <= share + SPARE
    assert seen["files"] <= SPARE
