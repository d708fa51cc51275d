"""Weights: what is read, what is refused, and what a shard of them is."""

import json

import pytest
import torch
from pds_engine.errors import ConfigError
from pds_engine.models.checkpoint import Checkpoint, digest
from pds_engine.models.config_json import read_config
from pds_engine.models.loader import load
from pds_engine.models.weights import tensors
from pds_engine.parallel.collectives import Alone
from safetensors.torch import save_file
from stored_weights import fp8, plain, scales

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
    assert torch.equal(layer.attention.qkv, torch.cat(qkv))
    assert torch.equal(layer.feed.down, stored[f"{name}mlp.down_proj.weight"])
    assert torch.equal(layer.attention.qk_norm[3], stored[f"{name}self_attn.q_norm.weight"])
    assert torch.equal(layer.attention.qk_norm[4], stored[f"{name}self_attn.k_norm.weight"])


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
        assert torch.equal(torch.cat((first.feed.down, second.feed.down), 1), layer.feed.down)
        heads = [each.attention for each in (first, second)]
        assert torch.equal(torch.cat([each.out for each in heads], 1), layer.attention.out)
        # a shard's rows: 2 query heads, 1 key head, 1 value head of 8 rows each
        qkv = layer.attention.qkv
        assert torch.equal(torch.cat([each.qkv[:16] for each in heads]), qkv[:32])
        assert torch.equal(torch.cat([each.qkv[16:24] for each in heads]), qkv[32:48])


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_each_shard_reads_its_part_and_no_more(folder, tp, monkeypatch):
    taken: dict[str, int] = {}
    read = Checkpoint.read

    def count(self, name, dtype, *parts):
        tensor = read(self, name, dtype, *parts)
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


def test_dp_ranks_have_all_of_attention_and_a_share_of_the_mlp(folder):
    whole = load(folder.engine(), 0, CPU).weights
    split = folder.engine(parallelism={"tp": 2, "dp": 2})
    ranks = [load(split, r, CPU, Shard(r % 2, 2), Shard(r, 4)).weights for r in range(4)]
    layers = [rank.layers[0] for rank in ranks]
    assert torch.equal(
        torch.cat([layer.feed.down for layer in layers], 1), whole.layers[0].feed.down
    )
    for one, other in (layers[::2], layers[1::2]):
        assert torch.equal(one.attention.qkv, other.attention.qkv)
        assert torch.equal(one.attention.out, other.attention.out)
    assert torch.equal(
        torch.cat([layer.attention.out for layer in layers[2:]], 1), whole.layers[0].attention.out
    )
    assert torch.equal(ranks[0].head, ranks[2].head)
    assert torch.equal(torch.cat((ranks[2].embedding, ranks[3].embedding)), whole.embedding)
    with pytest.raises(ValueError, match="rank 2 is shard 2 of 4, its collectives are those of"):
        load(split, 2, CPU, Shard(0, 2))


def test_biases_are_split_like_their_rows(folder):
    folder.become("Qwen2ForCausalLM")
    second = load(folder.engine(parallelism={"tp": 2}), 1, CPU, Shard(1, 2)).weights.layers[1]
    stored, sizes = folder.tensors(), {"q": 32, "k": 16, "v": 16}
    expected = [
        stored[f"model.layers.1.self_attn.{p}_proj.bias"][n // 2 :] for p, n in sizes.items()
    ]
    assert torch.equal(second.attention.qkv_bias, torch.cat(expected))
    assert second.attention.qk_norm.shape == (0,)


def test_collectives_of_another_shard_are_refused(folder):
    config = folder.engine(parallelism={"tp": 2})
    for wrong in (Shard(0, 2), Shard(1, 4), Alone()):
        with pytest.raises(ValueError, match="rank 1 is shard 1 of 2"):
            load(config, 1, CPU, wrong)


def test_weights_are_rounded_to_the_model_s_dtype(folder):
    config = folder.engine(model={"path": folder.path, "dtype": "bfloat16"})
    embedding = load(config, 0, CPU).weights.embedding
    expected = folder.tensors()["model.embed_tokens.weight"].bfloat16()
    assert torch.equal(embedding.bfloat16(), expected)
    assert torch.equal(embedding.float(), expected.float())


@pytest.mark.parametrize("stored", ["both", "embedding", "head"])
@pytest.mark.parametrize("pp", [1, 2])
def test_a_tied_head_is_the_embedding_unless_another_is_stored(folder, stored, pp):
    """As transformers does, whatever the configuration says: test_options compares the tokens."""
    folder.configure(tie_word_embeddings=True)
    embedding, head = "model.embed_tokens.weight", "lm_head.weight"
    names = {"both": [], "embedding": [head], "head": [embedding]}[stored]
    folder.change(lambda tensors: [tensors.pop(name) for name in names])
    config, held = folder.engine(parallelism={"pp": pp}), folder.tensors()
    first, last = load(config, 0, CPU).weights, load(config, pp - 1, CPU).weights
    assert torch.equal(first.embedding, held.get(embedding, held.get(head)))
    assert torch.equal(last.head, held.get(head, held.get(embedding)))
    assert (last.head is last.embedding) == (stored != "both" and pp == 1)


def test_a_tied_head_that_is_stored_twice_is_held_once(folder):
    folder.configure(tie_word_embeddings=True)
    same = "model.embed_tokens.weight"
    folder.change(lambda tensors: tensors.update({"lm_head.weight": tensors[same].clone()}))
    weights = load(folder.engine(), 0, CPU).weights
    assert weights.head is weights.embedding


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_model_in_fp8_is_the_model_that_its_scales_make_of_it(folder, tp):
    """Blocks of 3 rows and 5 columns end nowhere where heads or shards do."""
    keys = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [3, 5]}}
    stored, expected = folder.tensors(), folder.tensors()
    for name in [name for name in stored if name.endswith("_proj.weight")]:
        weight = fp8(*stored[name].shape)
        scale = scales(*[-(-n // b) for n, b in zip(weight.shape, (3, 5), strict=True)])
        stored[name], stored[f"{name}_scale_inv"] = weight, scale
        expected[name] = plain(weight, scale, (3, 5))
    split = folder.engine(parallelism={"tp": tp})
    folder.write(expected)
    wanted = [load(split, rank, CPU, Shard(rank, tp)).weights for rank in range(tp)]
    folder.write(stored)
    folder.configure(**keys)
    found = [load(split, rank, CPU, Shard(rank, tp)).weights for rank in range(tp)]
    for one, other in zip(tensors(found), tensors(wanted), strict=True):
        assert torch.equal(one, other)
    assert len(list(tensors(found))) > 10 * tp


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["model.norm.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight"]
)
def test_weights_that_are_no_numbers_are_refused_by_name(folder, name, value):
    folder.change(lambda tensors: tensors[name].view(-1)[-1:].fill_(value))
    with pytest.raises(ConfigError, match=rf"{name} in .* holds values that are no finite numbers"):
        load(folder.engine(), 0, CPU)


def test_weights_that_the_dtype_cannot_hold_are_refused_with_the_cure(folder):
    folder.change(lambda tensors: tensors["model.norm.weight"].fill_(1e5))
    load(folder.engine(model={"path": folder.path, "dtype": "bfloat16"}), 0, CPU)
    with pytest.raises(ConfigError, match=r"too large for torch\.float16") as caught:
        load(folder.engine(model={"path": folder.path, "dtype": "float16"}), 0, CPU)
    assert caught.value.hint == "set model.dtype to bfloat16 or float32"


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
    expected = load(folder.engine(), 0, CPU).weights.layers[0].attention.qkv
    folder.weights.unlink()
    for file, held in halves.items():
        save_file({name: tensors[name] for name in held}, folder.path / file)
    index = {"weight_map": {name: file for file, held in halves.items() for name in held}}
    (folder.path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load(folder.engine(), 0, CPU).weights.layers[0].attention.qkv, expected)
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
