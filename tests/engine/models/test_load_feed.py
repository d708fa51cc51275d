"""Experts are read one by one into one tensor: all of them by columns, or some whole."""

import json
from pathlib import Path

import cpu_libraries
import pytest
import torch
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.models.checkpoint import Checkpoint
from pds_engine.models.loader import load
from pds_engine.models.weights import ExpertWeights
from pds_engine.parallel.collectives import ALONE, Alone
from pds_kernels.grouped_gemm import OnCpu
from safetensors.torch import save_file

CPU = torch.device("cpu")
HIDDEN, COLUMNS, SHARED, EXPERTS = 16, 8, 12, 5
CONFIG = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "vocab_size": 40,
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": COLUMNS,
    "shared_expert_intermediate_size": SHARED,
    "qkv_bias": False,
}
LAYER = "model.layers.0."


class Shard(Alone):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, torch.Tensor]:
    """A model of random weights, written to tmp_path."""
    shapes = {f"{LAYER}self_attn.{letter}_proj": (HIDDEN, HIDDEN) for letter in "qkvo"}
    shapes |= {f"{LAYER}{norm}_layernorm": (HIDDEN,) for norm in ("input", "post_attention")}
    shapes |= {"model.embed_tokens": (40, HIDDEN), "lm_head": (40, HIDDEN), "model.norm": (HIDDEN,)}
    shapes |= {
        f"{LAYER}mlp.gate": (EXPERTS, HIDDEN),
        f"{LAYER}mlp.shared_expert_gate": (1, HIDDEN),
    }
    blocks = {f"experts.{expert}": COLUMNS for expert in range(EXPERTS)} | {"shared_expert": SHARED}
    for block, columns in blocks.items():
        name = f"{LAYER}mlp.{block}."
        shapes |= {f"{name}{half}_proj": (columns, HIDDEN) for half in ("gate", "up")}
        shapes[f"{name}down_proj"] = (HIDDEN, columns)
    source = torch.Generator().manual_seed(3)
    made = {f"{n}.weight": torch.randn(s, generator=source) for n, s in shapes.items()}
    save_file(made, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return made


def feed(folder: Path, rank: int, tp: int, *, ep: bool, dtype: str = "float32") -> ExpertWeights:
    config = EngineConfig.model_validate(
        {
            "model": {"path": folder, "dtype": dtype},
            "max_model_len": 64,
            "parallelism": {"tp": tp, "ep": ep},
        }
    )
    found = load(config, rank, CPU, Shard(rank, tp) if tp > 1 else ALONE).weights.layers[0].feed
    assert isinstance(found, ExpertWeights)
    return found


def whole(stored: dict[str, torch.Tensor], *kinds: str) -> torch.Tensor:
    """Of all experts: [E, …], the rows of `kinds` one after another."""
    return torch.stack(
        [
            torch.cat([stored[f"{LAYER}mlp.experts.{e}.{kind}_proj.weight"] for kind in kinds])
            for e in range(EXPERTS)
        ]
    )


def test_one_rank_has_all(stored, tmp_path):
    found = feed(tmp_path, 0, 1, ep=True)
    assert torch.equal(found.router, stored[f"{LAYER}mlp.gate.weight"])
    assert torch.equal(found.gate_up, whole(stored, "gate", "up"))
    assert torch.equal(found.down, whole(stored, "down"))
    assert torch.equal(found.shared.down, stored[f"{LAYER}mlp.shared_expert.down_proj.weight"])
    assert torch.equal(found.shared_gate, stored[f"{LAYER}mlp.shared_expert_gate.weight"])
    assert not any(each.numel() for each in (found.router_bias, found.correction, found.down_bias))


def test_by_columns_every_rank_has_a_part_of_each_expert(stored, tmp_path):
    ranks = [feed(tmp_path, rank, 4, ep=False) for rank in range(4)]
    assert torch.equal(torch.cat([each.down for each in ranks], 2), whole(stored, "down"))
    for at, kind in enumerate(("gate", "up")):
        halves = [each.gate_up.chunk(2, 1)[at] for each in ranks]
        assert torch.equal(torch.cat(halves, 1), whole(stored, kind))
    shared = torch.cat([each.shared.down for each in ranks], 1)
    assert torch.equal(shared, stored[f"{LAYER}mlp.shared_expert.down_proj.weight"])
    assert all(torch.equal(each.router, ranks[0].router) for each in ranks)


@pytest.mark.parametrize("tp", [2, 4])
def test_with_expert_parallelism_every_rank_has_some_whole(stored, tmp_path, tp):
    ranks = [feed(tmp_path, rank, tp, ep=True) for rank in range(tp)]
    assert [len(each.down) for each in ranks] == {2: [3, 2], 4: [2, 1, 1, 1]}[tp]
    assert torch.equal(torch.cat([each.down for each in ranks]), whole(stored, "down"))
    assert torch.equal(torch.cat([each.gate_up for each in ranks]), whole(stored, "gate", "up"))
    for each in ranks:
        down = stored[f"{LAYER}mlp.shared_expert.down_proj.weight"]
        assert torch.equal(each.shared.down, down)


@pytest.mark.parametrize("ep", [False, True], ids=["by columns", "whole"])
def test_no_more_is_read_than_a_rank_holds(stored, tmp_path, ep, monkeypatch):
    taken: dict[str, int] = {}
    read = Checkpoint.read

    def count(self, name, dtype, *parts):
        tensor = read(self, name, dtype, *parts)
        taken[name] = taken.get(name, 0) + tensor.numel()
        return tensor

    monkeypatch.setattr(Checkpoint, "read", count)
    for rank in range(2):
        feed(tmp_path, rank, 2, ep=ep)
    for name, number in taken.items():
        if ".experts." in name:
            assert number == COLUMNS * HIDDEN, name
        elif ".shared_expert." in name:
            assert number == SHARED * HIDDEN * (2 if ep else 1), name


def test_columns_of_experts_need_not_divide_where_these_are_whole(stored, tmp_path):
    """8 columns of each expert and 12 of the shared block, on three ranks."""
    config = CONFIG | {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = dict(stored)
    for letter, cut in {"q": (12, 16), "k": (12, 16), "v": (12, 16), "o": (16, 12)}.items():
        tensors[f"{LAYER}self_attn.{letter}_proj.weight"] = torch.ones(cut)
    save_file(tensors, tmp_path / "model.safetensors")
    ranks = [feed(tmp_path, rank, 3, ep=True) for rank in range(3)]
    assert torch.equal(torch.cat([each.down for each in ranks]), whole(stored, "down"))
    with pytest.raises(ConfigError, match="does not divide the model's 8 MLP columns") as raised:
        feed(tmp_path, 0, 3, ep=False)
    assert "parallelism.ep" in raised.value.hint


def test_an_expert_that_is_missing_is_named(stored, tmp_path):
    name = f"{LAYER}mlp.experts.3.up_proj.weight"
    save_file({n: t for n, t in stored.items() if n != name}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="has no tensor " + name):
        feed(tmp_path, 0, 1, ep=False)


def test_in_bfloat16_router_and_experts_are_rounded(stored, tmp_path):
    found = feed(tmp_path, 1, 2, ep=True, dtype="bfloat16")
    expected = whole(stored, "down")[3:].bfloat16()
    assert torch.equal(found.down.bfloat16(), expected)
    assert torch.equal(found.down.float(), expected.float())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("ep", [False, True], ids=["by columns", "whole"])
def test_experts_are_packed_where_their_kernel_reads_them_so(stored, tmp_path, ep, dtype):
    """As they are stored, whatever the processor computes in."""
    with cpu_libraries.using(cpu_libraries.MINE[0]):
        ranks = [feed(tmp_path, rank, 2, ep=ep, dtype=dtype) for rank in range(2)]
        for rank, found in enumerate(ranks):
            held = [slice(0, 3), slice(3, 5)][rank] if ep else slice(None)
            columns = slice(None) if ep else slice(4 * rank, 4 * rank + 4)
            gate, up = (whole(stored, kind)[held, columns] for kind in ("gate", "up"))
            down = whole(stored, "down")[held, :, columns]
            assert isinstance(found.reading, OnCpu)
            expected = found.reading.empty(len(down))
            for place, each in enumerate(zip(gate, up, down, strict=True)):
                found.reading.pack(torch.cat(each[:2]), each[2], expected, place)
            assert torch.equal(found.gate_up, expected.gate_up)
            assert torch.equal(found.down, expected.down)
            assert found.down.dtype == getattr(torch, dtype)
