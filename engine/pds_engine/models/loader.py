"""From a model folder to a Decoder: reads only what this rank computes."""

from dataclasses import replace

import torch
from pds_kernels import cpu, targets
from pds_kernels.targets import Gpu

from pds_engine.config import Dtype, EngineConfig
from pds_engine.layers import rope
from pds_engine.models import load_layer, load_vocabulary
from pds_engine.models.checkpoint import Checkpoint
from pds_engine.models.decoder import Decoder
from pds_engine.models.reader import Reader, Tensors
from pds_engine.models.registry import check, family_of
from pds_engine.models.tensors import contents
from pds_engine.models.weights import Weights
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

    A CPU computes in float32, whatever weights are stored in, unless it has instructions for
    bfloat16.
    """
    if device.type != "cpu" or (dtype == torch.bfloat16 and cpu.here().multiplies_bf16):
        return dtype
    return torch.float32


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
    _check(rank, mine.stage_rank, mine.width, ranks.stage)
    with Checkpoint(contents(config.model.path, spec)) as checkpoint:
        return assemble(config, spec, mine, checkpoint, ranks, device, targets.of(device))


def assemble(
    config: EngineConfig,
    spec: DecoderSpec,
    mine: ModelPart,
    tensors: Tensors,
    ranks: StageRanks,
    device: torch.device,
    gpu: Gpu | None,
) -> Decoder:
    """The decoder of this part, of `tensors` that are all there and fit `spec`. `gpu`: what the
    device is, or stands for."""
    stored = DTYPES[config.model.dtype]
    dtype = compute_dtype(stored, device)
    spec = _rounded(spec, stored)
    reader = Reader(
        tensors,
        stored,
        dtype,
        device,
        norm_offset=spec.norm_offset,
        norm_wide=spec.norm_wide,
        gpu=gpu,
    )
    names = family_of(spec).names
    embedding, norm, head = load_vocabulary.read(reader, mine)
    layers = tuple(load_layer.read(reader, spec, names, mine, at) for at in mine.layers)
    reader.report()
    ropes = {spec.layers[at].attention.rope for at in mine.layers}
    tables = {kind: rope.table(kind, config.max_model_len, device) for kind in ropes}
    return Decoder(spec, mine, Weights(layers, embedding, norm, head), tables, dtype, ranks)


def _rounded(spec: DecoderSpec, dtype: torch.dtype) -> DecoderSpec:
    """With what embeddings are multiplied by rounded as they are, as Gemma was trained."""
    scale = torch.tensor(spec.embedding_scale, dtype=dtype).item()
    return replace(spec, embedding_scale=scale)


def _check(rank: int, shard: int, shards: int, given: Collectives) -> None:
    if (given.rank, given.size) != (shard, shards):
        raise ValueError(
            f"rank {rank} is shard {shard} of {shards}, its collectives are those of "
            f"shard {given.rank} of {given.size}"
        )
