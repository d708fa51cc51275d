"""Weights: what is read, what is refused, and what a shard of them is."""

import json

import pytest
import torch
from pds_engine.errors import ConfigError
from pds_engine.models.checkpoint import digest
from pds_engine.models.loader import load
from pds_engine.spec import read_config
from safetensors.torch import save_file

CPU = torch.device("cpu")


def test_a_layer_s_tensors_are_joined(folder):
    stored, layer = folder.tensors(), load(folder.engine(), 0, CPU).weights.layers[1]
    name = "model.layers.1."
    qkv = [stored[f"{name}self_attn.{part}_proj.weight"] for part in "qkv"]
    assert torch.equal(layer.qkv, torch.cat(qkv))
    assert torch.equal(layer.down, stored[f"{name}mlp.down_proj.weight"])
    assert torch.equal(layer.qk_norm[3], stored[f"{name}self_attn.q_norm.weight"])
    assert torch.equal(layer.qk_norm[4], stored[f"{name}self_attn.k_norm.weight"])


def test_shards_add_up_to_the_whole(folder):
    whole = load(folder.engine(), 0, CPU)
    split = folder.engine(parallelism={"pp": 2, "tp": 2})
    ranks = [load(split, rank, CPU) for rank in range(4)]
    assert [len(rank.weights.layers) for rank in ranks] == [1] * 4
    assert [rank.weights.embedding is not None for rank in ranks] == [True, True, False, False]
    assert [rank.weights.head is not None for rank in ranks] == [False, False, True, True]
    for stage in (0, 1):
        first, second = (rank.weights.layers[0] for rank in ranks[2 * stage : 2 * stage + 2])
        layer = whole.weights.layers[stage]
        assert torch.equal(torch.cat((first.down, second.down), 1), layer.down)
        assert torch.equal(torch.cat((first.out, second.out), 1), layer.out)
        # a shard's rows: 2 query heads, 1 key head, 1 value head of 8 rows each
        assert torch.equal(torch.cat((first.qkv[:16], second.qkv[:16])), layer.qkv[:32])
        assert torch.equal(torch.cat((first.qkv[16:24], second.qkv[16:24])), layer.qkv[32:48])


def test_a_tied_head_is_the_embedding(folder):
    folder.configure(tie_word_embeddings=True)
    folder.change(lambda tensors: tensors.pop("lm_head.weight"))
    weights = load(folder.engine(), 0, CPU).weights
    assert weights.head is weights.embedding


def test_weights_are_rounded_to_the_model_s_dtype(folder):
    config = folder.engine(model={"path": folder.path, "dtype": "bfloat16"})
    embedding = load(config, 0, CPU).weights.embedding
    expected = folder.tensors()["model.embed_tokens.weight"].bfloat16()
    assert torch.equal(embedding.bfloat16(), expected)
    assert torch.equal(embedding.float(), expected.float())


def spoil_shape(tensors):
    tensors["model.norm.weight"] = torch.zeros(17)


def spoil_kind(tensors):
    tensors["model.norm.weight"] = torch.zeros(16, dtype=torch.int32)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"has no tensor model\.norm\.weight"),
        (spoil_shape, r"model\.norm\.weight in .* has shape \(17,\), config.json says \(16,\)"),
        (spoil_kind, "is not a floating-point tensor"),
    ],
)
def test_wrong_tensors_are_named(folder, edit, says):
    folder.change(edit)
    with pytest.raises(ConfigError, match=says):
        load(folder.engine(), 0, CPU)


def test_missing_and_damaged_files(folder):
    folder.weights.write_bytes(folder.weights.read_bytes()[:100])
    with pytest.raises(ConfigError, match="cannot read"):
        load(folder.engine(), 0, CPU)
    folder.weights.unlink()
    with pytest.raises(ConfigError, match=r"missing .*model\.safetensors"):
        load(folder.engine(), 0, CPU)


def test_an_index_names_its_files(folder):
    tensors = folder.tensors()
    names = sorted(tensors)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    expected = load(folder.engine(), 0, CPU).weights.layers[0].qkv
    folder.weights.unlink()
    for file, held in halves.items():
        save_file({name: tensors[name] for name in held}, folder.path / file)
    index = {"weight_map": {name: file for file, held in halves.items() for name in held}}
    (folder.path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load(folder.engine(), 0, CPU).weights.layers[0].qkv, expected)
    (folder.path / "b.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"missing .*b\.safetensors"):
        load(folder.engine(), 0, CPU)


def test_the_digest_follows_content_alone(folder):
    def now() -> str:
        return digest(folder.path, read_config(folder.path))

    first = now()
    folder.configure(torch_dtype="float16", transformers_version="9")
    assert now() == first
    folder.configure(rope_theta=20000.0)
    assert now() != first
    folder.configure()
    folder.change(lambda tensors: tensors["model.norm.weight"].add_(1))
    assert now() != first
