"""Weights: what is read, what is refused, and what a shard of them is."""

import json

import pytest
import torch
from pds_engine.errors import ConfigError
from pds_engine.models.checkpoint import Checkpoint, digest
from pds_engine.models.loader import load
from pds_engine.parallel.collectives import Alone
from pds_engine.spec import read_config
from safetensors.torch import save_file

CPU = torch.device("cpu")


class Shard(Alone):
    """One of several shards that never speak to each other: enough to load one."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size


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
    ranks = [load(split, rank, CPU, Shard(rank % 2, 2)) for rank in range(4)]
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


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_each_shard_reads_its_part_and_no_more(folder, tp, monkeypatch):
    taken: dict[str, int] = {}
    read = Checkpoint.read

    def count(self, name, shape, dim=0, part=None):
        tensor = read(self, name, shape, dim, part)
        taken[name] = taken.get(name, 0) + tensor.numel()
        return tensor

    monkeypatch.setattr(Checkpoint, "read", count)
    for rank in range(tp):
        load(folder.engine(parallelism={"tp": tp}), rank, CPU, Shard(rank, tp))
    whole = {name: tensor.numel() for name, tensor in folder.tensors().items()}
    copies = dict.fromkeys(whole, 1)
    for name in whole:
        if "norm" in name:
            copies[name] = tp
        elif "k_proj" in name or "v_proj" in name:
            copies[name] = max(1, tp // 2)  # there are two KV heads
    assert taken == {name: count * copies[name] for name, count in whole.items()}


def test_a_vocabulary_that_does_not_divide_is_padded(folder):
    split = folder.engine(parallelism={"tp": 3})
    folder.configure(num_attention_heads=6, num_key_value_heads=3, head_dim=8)
    wanted = {"q_proj": (48, 16), "k_proj": (24, 16), "v_proj": (24, 16), "o_proj": (16, 48)}

    def widen(tensors):
        for name in list(tensors):
            for part, shape in wanted.items():
                if part in name:
                    tensors[name] = torch.zeros(shape)

    folder.change(widen)
    ranks = [load(split, rank, CPU, Shard(rank, 3)) for rank in range(3)]
    assert [rank.part.vocab for rank in ranks] == [range(14), range(14, 28), range(28, 40)]
    for kind in ("embedding", "head"):
        rows = torch.cat([getattr(rank.weights, kind) for rank in ranks])
        name = "lm_head.weight" if kind == "head" else "model.embed_tokens.weight"
        assert torch.equal(rows[:40], folder.tensors()[name])
        assert rows[40:].tolist() == [[0.0] * 16] * 2
    scores = ranks[2].logits(torch.ones(3, 16))
    assert scores.shape == (3, 14)
    assert scores[:, :12].isfinite().all()
    assert (scores[:, 12:] == float("-inf")).all()


def test_biases_are_split_like_their_rows(folder):
    folder.configure(architectures=["Qwen2ForCausalLM"])
    sizes = {"q": 32, "k": 16, "v": 16}
    biases = {
        f"model.layers.{layer}.self_attn.{part}_proj.bias": torch.randn(size)
        for layer in range(2)
        for part, size in sizes.items()
    }
    folder.change(lambda tensors: tensors.update(biases))
    second = load(folder.engine(parallelism={"tp": 2}), 1, CPU, Shard(1, 2)).weights.layers[1]
    expected = [
        biases[f"model.layers.1.self_attn.{p}_proj.bias"][n // 2 :] for p, n in sizes.items()
    ]
    assert torch.equal(second.qkv_bias, torch.cat(expected))
    assert second.qk_norm.shape == (0,)


def test_collectives_of_another_shard_are_refused(folder):
    config = folder.engine(parallelism={"tp": 2})
    for wrong in (Shard(0, 2), Shard(1, 4), Alone()):
        with pytest.raises(ValueError, match="rank 1 is shard 1 of 2"):
            load(config, 1, CPU, wrong)


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
