"""A decoder whose tensors have shapes and no memory, on torch's meta device.

A warm-up runs it to see which kernels a rank launches. So it needs config.json alone, and neither
weights nor other ranks; the hidden states that an earlier stage would send are made up.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from pds_kernels.targets import Gpu
from torch import Tensor

from pds_engine.config import EngineConfig
from pds_engine.models import quantized
from pds_engine.models.config_json import read_config
from pds_engine.models.decoder import Decoder
from pds_engine.models.dequantized import Fp8, uncut
from pds_engine.models.loader import assemble
from pds_engine.models.names import HEAD
from pds_engine.models.quantized import Quantisation
from pds_engine.models.registry import family_of
from pds_engine.models.shapes import Shapes, shapes
from pds_engine.models.weights import tensors
from pds_engine.parallel.collectives import ALONE, Collectives, StageRanks
from pds_engine.parallel.layout import ModelPart
from pds_engine.spec import DecoderSpec

META = torch.device("meta")


def decoder(config: EngineConfig, spec: DecoderSpec, mine: ModelPart, gpu: Gpu) -> Decoder:
    """The decoder of the rank with this part on `gpu`, with one of all its layers that are alike.

    What config.json says to be in FP8 is taken to be so. A checkpoint may have plain weights among
    them: no kernel that is planned here multiplies by these. Matrices go to torch then; experts go
    to kernels that are compiled when they are first used.
    """
    layers = tuple(dict.fromkeys(spec.layers[index] for index in mine.layers))
    spec, mine = replace(spec, layers=layers), replace(mine, layers=range(len(layers)))
    names, folder = family_of(spec).names, config.model.path
    quantisation = quantized.read(folder, read_config(folder))
    found = shapes(spec, names)
    del found[HEAD]  # the embedding's, as in models where both are one: their shapes are alike
    ranks = StageRanks(_ranks(mine.tp_rank, mine.tp), _ranks(mine.stage_rank, mine.width))
    checkpoint = _Checkpoint(found, names.prefix, quantisation)
    return assemble(config, spec, mine, checkpoint, ranks, META, gpu)


def layer_bytes(config: EngineConfig, spec: DecoderSpec, mine: ModelPart, gpu: Gpu) -> int:
    """Bytes of the layers of the rank with this part on `gpu`: weights that stay in FP8 there count
    as they are stored, with their scales."""
    made = decoder(config, spec, mine, gpu)
    each = {
        layer: sum(one.nbytes for one in tensors(held))
        for layer, held in zip(made.layers, made.weights.layers, strict=True)
    }
    return sum(each[spec.layers[at]] for at in mine.layers)


class _Checkpoint:
    """models.reader.Tensors of these shapes; in a file, names begin with `prefix`."""

    def __init__(self, found: Shapes, prefix: str, quantisation: Quantisation | None) -> None:
        self._shapes = found
        self._prefix = prefix
        self._quantisation = quantisation

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def read(self, name: str, dtype: torch.dtype, *parts: range | None) -> Tensor:
        sizes = list(self._shapes[name])
        for dimension, cut in enumerate(parts):
            if cut is not None:
                sizes[dimension] = len(cut)
        return torch.empty(sizes, dtype=dtype, device=META)

    def has_fp8(self, name: str) -> bool:
        return self._block(name) is not None

    def read_fp8(self, name: str, *parts: range | None) -> Fp8 | None:
        block, shape = self._block(name), self._shapes[name]
        given = (*parts, *[None] * (len(shape) - len(parts)))
        ranges = [
            range(size) if part is None else part for size, part in zip(shape, given, strict=True)
        ]
        if block is None or not uncut(shape, block, ranges):
            return None
        blocks = [-(-len(part) // size) for part, size in zip(ranges, block, strict=True)]
        weight = self.read(name, torch.float8_e4m3fn, *parts)
        return Fp8(weight, torch.empty(blocks, dtype=torch.float32, device=META), block)

    def _block(self, name: str) -> tuple[int, int] | None:
        """What has one scale, where config.json says that matrix `name` is in FP8 by blocks."""
        module = f"{self._prefix}{name}".removesuffix(".weight")
        if self._quantisation is None or self._quantisation.ignores(module):
            return None
        scheme = self._quantisation.scheme(module)
        return None if scheme is None or "block" not in scheme.kinds else scheme.block


class _Ranks(Collectives):
    """Gives tensors of the shapes that the other ranks' would have."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x.new_empty(self.size, *x.shape)

    def gather_parts(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return x.new_empty(sum(sizes), *x.shape[1:])

    def reduce_scatter(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return x.new_empty(sizes[self.rank], *x.shape[1:])

    def all_to_all(self, x: Tensor, give: Sequence[int], take: Sequence[int]) -> Tensor:
        return x.new_empty(sum(take), *x.shape[1:])

    def read(self, counts: Tensor, given: int) -> list[int]:
        """As many rows come as go."""
        return [given, *[0] * (len(counts) - 2), given]

    def broadcast(self, x: Tensor) -> Tensor:
        return x


def _ranks(rank: int, size: int) -> Collectives:
    return ALONE if size == 1 else _Ranks(rank, size)
