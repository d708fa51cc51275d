"""From a model folder to a Decoder: reads only what this rank computes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pds_engine.config import Dtype, EngineConfig
from pds_engine.layers import rope
from pds_engine.models.checkpoint import Checkpoint
from pds_engine.models.decoder import Decoder, LayerWeights, Weights
from pds_engine.models.registry import check
from pds_engine.models.tensors import EMBEDDING, HEAD, NORM, contents
from pds_engine.parallel.collectives import ALONE, Collectives, StageRanks
from pds_engine.parallel.layout import ModelPart, part
from pds_engine.spec import DecoderSpec

DTYPES: dict[Dtype, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What matrices are multiplied in.

    A CPU without bfloat16 (float16) instructions falls back to a loop ten times slower than
    float32; there the weights are rounded to `dtype`, kept and multiplied in float32.
    """
    if device.type != "cpu" or dtype == torch.float32:
        return dtype
    native = (
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if dtype == torch.bfloat16
        else torch.ops.mkldnn._is_mkldnn_fp16_supported()
    )
    return dtype if native else torch.float32


def load(
    config: EngineConfig,
    rank: int,
    device: torch.device,
    collectives: Collectives = ALONE,
    stage: Collectives | None = None,
) -> Decoder:
    """Rank `rank`'s part of the model at config.model.path.

    `collectives` are its attention group's, `stage` those of all its stage's ranks: at dp 1 the
    same, and None.

    Raises:
        ConfigError: anything is missing, of another shape, or cannot be split so.
    """
    spec = check(config)
    mine = part(spec, config.parallelism, rank, config.role)
    ranks = StageRanks(collectives, stage or collectives)
    _check(rank, mine.tp_rank, mine.tp, ranks.attention)
    _check(rank, mine.dp_rank * mine.tp + mine.tp_rank, mine.width, ranks.stage)
    stored = DTYPES[config.model.dtype]
    dtype = compute_dtype(stored, device)
    with Checkpoint(contents(config.model.path, spec)) as checkpoint:
        weights = _Reader(checkpoint, spec, mine, stored, dtype, device).weights()
    table = rope.table(spec.rope, spec.head_dim, config.max_model_len, device)
    return Decoder(spec, mine, weights, table, dtype, ranks)


def _check(rank: int, shard: int, shards: int, given: Collectives) -> None:
    if (given.rank, given.size) != (shard, shards):
        raise ValueError(
            f"rank {rank} is shard {shard} of {shards}, its collectives are those of "
            f"shard {given.rank} of {given.size}"
        )


class _Reader:
    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: DecoderSpec,
        mine: ModelPart,
        stored: torch.dtype,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._checkpoint = checkpoint
        self._spec = spec
        self._part = mine
        self._stored = stored
        self._dtype = dtype
        self._device = device

    def weights(self) -> Weights:
        mine, checkpoint = self._part, self._checkpoint
        embedding = self._vocabulary(EMBEDDING, HEAD) if mine.embeds else None
        head = norm = None
        if mine.samples:
            both = EMBEDDING in checkpoint and HEAD in checkpoint
            if both or embedding is None:
                head = self._vocabulary(HEAD, EMBEDDING)
            if head is None or (embedding is not None and torch.equal(head, embedding)):
                head = embedding
            norm = self._read(NORM)
        layers = tuple(self._layer(f"model.layers.{index}.") for index in mine.layers)
        return Weights(layers, embedding, norm, head)

    def _vocabulary(self, name: str, tied: str) -> Tensor:
        """This shard's rows of an embedding, with zeros up to as many as all shards have.

        `tied` is the tensor that a checkpoint has in its place where both are one.
        """
        mine = self._part
        rows = self._read(name if name in self._checkpoint else tied, 0, mine.vocab)
        missing = mine.vocab_rows - len(rows)
        return F.pad(rows, (0, 0, 0, missing)) if missing else rows

    def _layer(self, name: str) -> LayerWeights:
        spec = self._spec
        heads, columns = self._heads(self._part.heads), self._part.columns
        gate_up = [
            self._read(f"{name}mlp.{part}_proj.weight", 0, columns) for part in ("gate", "up")
        ]
        return LayerWeights(
            input_norm=self._read(f"{name}input_layernorm.weight"),
            qkv=self._qkv(name, "weight"),
            qkv_bias=self._qkv(name, "bias") if spec.qkv_bias else self._none(),
            qk_norm=self._qk_norm(name) if spec.qk_norm else self._none(),
            out=self._read(f"{name}self_attn.o_proj.weight", 1, heads),
            post_norm=self._read(f"{name}post_attention_layernorm.weight"),
            gate_up=torch.cat(gate_up),
            down=self._read(f"{name}mlp.down_proj.weight", 1, columns),
        )

    def _qkv(self, name: str, kind: str) -> Tensor:
        """Weights or biases of the three projections, this shard's heads of each."""
        mine = self._part
        parts = [
            self._read(f"{name}self_attn.{letter}_proj.{kind}", 0, self._heads(heads))
            for letter, heads in (("q", mine.heads), ("k", mine.kv_heads), ("v", mine.kv_heads))
        ]
        return torch.cat(parts)

    def _none(self) -> Tensor:
        return torch.empty(0, dtype=self._dtype, device=self._device)

    def _qk_norm(self, name: str) -> Tensor:
        q, k = (self._read(f"{name}self_attn.{letter}_norm.weight") for letter in "qk")
        counts = len(self._part.heads), len(self._part.kv_heads)
        return torch.cat([w.expand(n, -1) for w, n in zip((q, k), counts, strict=True)])

    def _heads(self, heads: range) -> range:
        """The rows of a projection that make these heads."""
        return range(heads.start * self._spec.head_dim, heads.stop * self._spec.head_dim)

    def _read(self, name: str, dim: int = 0, wanted: range | None = None) -> Tensor:
        tensor = self._checkpoint.read(name, self._stored, dim, wanted)
        return tensor.to(self._device, self._dtype).contiguous()
