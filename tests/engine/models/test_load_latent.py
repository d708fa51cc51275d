"""Latent attention from a checkpoint: what a rank has of it, and tensors that are passed over."""

import logging
from typing import Any

import pytest
import torch
from pds_engine.errors import ConfigError
from pds_engine.models.checkpoint import Checkpoint
from pds_engine.models.loader import load
from pds_engine.models.registry import check
from pds_engine.models.weights import MlaWeights, tensors
from pds_engine.parallel.collectives import Alone
from pds_engine.spec import KvSpec
from stored_weights import fp8, plain, scales

CPU = torch.device("cpu")
HIDDEN, HEADS, NOPE, ROPE, VALUE, RANK, Q_RANK = 16, 4, 6, 4, 5, 12, 10
SMALL = {
    "first_k_dense_replace": 2,
    "head_dim": ...,
    "num_key_value_heads": HEADS,
    "kv_lora_rank": RANK,
    "q_lora_rank": Q_RANK,
    "qk_nope_head_dim": NOPE,
    "qk_rope_head_dim": ROPE,
    "v_head_dim": VALUE,
}


def latent_tensors(layer: int, *, q_rank: int | None = Q_RANK) -> dict[str, torch.Tensor]:
    """What latent attention has in a checkpoint."""
    generator = torch.Generator().manual_seed(layer)
    query = HEADS * (NOPE + ROPE)
    sizes: dict[str, tuple[int, ...]] = {
        "kv_a_proj_with_mqa": (RANK + ROPE, HIDDEN),
        "kv_a_layernorm": (RANK,),
        "kv_b_proj": (HEADS * (NOPE + VALUE), RANK),
        "o_proj": (HIDDEN, HEADS * VALUE),
    }
    if q_rank is None:
        sizes["q_proj"] = (query, HIDDEN)
    else:
        sizes |= {"q_a_proj": (q_rank, HIDDEN), "q_a_layernorm": (q_rank,)}
        sizes["q_b_proj"] = (query, q_rank)
    return {
        f"model.layers.{layer}.self_attn.{name}.weight": torch.randn(size, generator=generator)
        for name, size in sizes.items()
    }


def become(folder, version: int, *, q_rank: int | None = Q_RANK, **keys: Any) -> None:
    """`folder` with latent attention, all its layers dense."""
    folder.configure(
        architectures=[f"DeepseekV{version}ForCausalLM"], **SMALL | {"q_lora_rank": q_rank} | keys
    )

    def fit(held: dict[str, torch.Tensor]) -> None:
        for name in [name for name in held if "self_attn" in name]:
            del held[name]
        for layer in range(2):
            held.update(latent_tensors(layer, q_rank=q_rank))

    folder.change(fit)


class Shard(Alone):
    """One of several shards that never speak to each other: enough to load one."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size


def loaded(folder, tp: int = 1) -> list[MlaWeights]:
    """Layer 1's attention, of each rank."""
    split = folder.engine(parallelism={"tp": tp})
    found = [load(split, r, CPU, Shard(r, tp)).weights.layers[1].attention for r in range(tp)]
    assert all(isinstance(each, MlaWeights) for each in found)
    return [each for each in found if isinstance(each, MlaWeights)]


def test_a_layer_s_tensors_are_cut_into_heads(folder):
    become(folder, 3, rope_interleave=False)
    [found], held = loaded(folder), latent_tensors(1)
    name = "model.layers.1.self_attn."
    assert torch.equal(found.q_a, held[f"{name}q_a_proj.weight"])
    assert torch.equal(found.q_b, held[f"{name}q_b_proj.weight"])
    assert torch.equal(found.kv_a, held[f"{name}kv_a_proj_with_mqa.weight"])
    stored = held[f"{name}kv_b_proj.weight"]
    for head in range(HEADS):
        first = head * (NOPE + VALUE)
        assert torch.equal(found.uk[head], stored[first : first + NOPE])
        assert torch.equal(found.uv[head], stored[first + NOPE : first + NOPE + VALUE])


@pytest.mark.parametrize(("version", "q_rank"), [(2, None), (2, Q_RANK), (3, Q_RANK)])
def test_interleaved_pairs_are_put_into_halves(folder, version, q_rank):
    become(folder, version, q_rank=q_rank)
    [found], held = loaded(folder), latent_tensors(1, q_rank=q_rank)
    name = "model.layers.1.self_attn."
    query = held[f"{name}{'q_proj' if q_rank is None else 'q_b_proj'}.weight"]
    order = [0, 2, 1, 3]
    for head in range(HEADS):
        rows = [head * (NOPE + ROPE) + at for at in (*range(NOPE), *(NOPE + at for at in order))]
        ours = found.q_b[head * (NOPE + ROPE) : (head + 1) * (NOPE + ROPE)]
        assert torch.equal(ours, query[rows])
    assert torch.equal(
        found.kv_a,
        held[f"{name}kv_a_proj_with_mqa.weight"][[*range(RANK), *(RANK + at for at in order)]],
    )
    assert found.q_a.numel() == (0 if q_rank is None else q_rank * HIDDEN)


@pytest.mark.parametrize("tp", [2, 4])
def test_heads_are_shared_out_and_the_latent_is_not(folder, tp, monkeypatch):
    become(folder, 3)
    [whole] = loaded(folder)
    taken: dict[str, int] = {}
    read = Checkpoint.read

    def count(self, name, dtype, *parts):
        tensor = read(self, name, dtype, *parts)
        taken[name] = taken.get(name, 0) + tensor.numel()
        return tensor

    monkeypatch.setattr(Checkpoint, "read", count)
    ranks = loaded(folder, tp)
    for field in ("uk", "uv", "q_b"):
        assert torch.equal(torch.cat([getattr(r, field) for r in ranks]), getattr(whole, field))
    assert torch.equal(torch.cat([rank.out for rank in ranks], 1), whole.out)
    for field in ("q_a", "q_a_norm", "kv_a", "kv_a_norm"):
        assert all(torch.equal(getattr(rank, field), getattr(whole, field)) for rank in ranks)
    parts = ("q_b_proj", "kv_b_proj", "o_proj")
    for name, tensor in latent_tensors(1).items():
        copies = 1 if any(part in name for part in parts) else tp
        assert taken[name] == tensor.numel() * copies, name


def test_a_model_in_fp8_is_the_model_that_its_scales_make_of_it(folder):
    """Blocks of 3 rows and 5 columns end nowhere where heads, latent or shards do."""
    become(folder, 3)
    stored, expected = folder.tensors(), folder.tensors()
    for name in [name for name in stored if name.endswith(("_proj.weight", "_mqa.weight"))]:
        weight = fp8(*stored[name].shape)
        scale = scales(*[-(-n // b) for n, b in zip(weight.shape, (3, 5), strict=True)])
        stored[name], stored[f"{name}_scale_inv"] = weight, scale
        expected[name] = plain(weight, scale, (3, 5))
    folder.write(expected)
    wanted = loaded(folder, 2)
    folder.write(stored)
    quantized = {"quant_method": "fp8", "weight_block_size": [3, 5]}
    become_keys = SMALL | {"quantization_config": quantized}
    folder.configure(architectures=["DeepseekV3ForCausalLM"], **become_keys)
    for one, other in zip(tensors(loaded(folder, 2)), tensors(wanted), strict=True):
        assert torch.equal(one, other)


def predicting(layer: int) -> dict[str, torch.Tensor]:
    """Some tensors of a layer that predicts further tokens."""
    name = f"model.layers.{layer}."
    return {
        f"{name}eh_proj.weight": torch.zeros(HIDDEN, 2 * HIDDEN),
        f"{name}enorm.weight": torch.zeros(HIDDEN),
        f"{name}mlp.experts.0.up_proj.weight": torch.zeros(3, HIDDEN),
        **latent_tensors(layer),
    }


@pytest.mark.parametrize("keys", [{}, {"num_nextn_predict_layers": 1}, {"num_mtp_layers": 1}])
def test_layers_that_predict_further_tokens_are_passed_over(folder, caplog, keys):
    become(folder, 3, **keys)
    expected = list(tensors(load(folder.engine(), 0, CPU).weights))
    folder.change(lambda held: held.update(predicting(2)))
    caplog.clear()
    with caplog.at_level(logging.INFO, "pds.models"):
        found = list(tensors(load(folder.engine(), 0, CPU).weights))
    assert all(map(torch.equal, found, expected))
    assert [record.getMessage() for record in caplog.records] == [
        "10 tensors of multi-token prediction are not computed: model.layers.2.*"
    ]


@pytest.mark.parametrize(
    ("version", "keys", "layer"),
    [
        (3, {"num_nextn_predict_layers": 0}, 2),
        (3, {"num_nextn_predict_layers": 1}, 3),
        (2, {}, 2),
    ],
)
def test_layers_that_nobody_announced_are_refused(folder, version, keys, layer):
    become(folder, version, **keys)
    folder.change(lambda held: held.update(predicting(layer)))
    with pytest.raises(ConfigError, match=rf"tensors that nobody reads: model\.layers\.{layer}\."):
        load(folder.engine(), 0, CPU)


def test_a_wrong_count_of_layers_that_predict(folder):
    become(folder, 3, num_nextn_predict_layers=-1)
    with pytest.raises(ConfigError, match="num_nextn_predict_layers must be a whole number"):
        load(folder.engine(), 0, CPU)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_any_tp_that_divides_the_heads(folder, tp):
    become(folder, 3)
    assert check(folder.engine(parallelism={"tp": tp})).kv == KvSpec(1, 0, RANK + ROPE)
