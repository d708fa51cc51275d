"""Loading one layer: this rank's part of its norms, its attention and its feed-forward block."""

import torch
from torch import Tensor

from pds_engine.models.load_feed import dense, experts, moved
from pds_engine.models.load_latent import mla
from pds_engine.models.matrices import Part, matrix
from pds_engine.models.names import Names, layer_name
from pds_engine.models.reader import Reader
from pds_engine.models.shapes import normed
from pds_engine.models.weights import (
    DenseWeights,
    ExpertWeights,
    GqaWeights,
    LayerWeights,
    MlaWeights,
    NormWeights,
)
from pds_engine.parallel.layout import ModelPart
from pds_engine.spec import DecoderSpec, DenseSpec, ExpertsSpec, GqaSpec, MlaSpec


def read(
    reader: Reader, spec: DecoderSpec, names: Names, mine: ModelPart, index: int
) -> LayerWeights:
    """Layer `index` of the model."""
    layer, name = spec.layers[index], layer_name(index)
    return LayerWeights(
        norms=_norms(reader, spec, names, name),
        attention=_attention(reader, layer.attention, names, mine, name),
        feed=_feed(reader, layer.feed, names, mine, name),
    )


def _feed(
    reader: Reader, spec: DenseSpec | ExpertsSpec, names: Names, mine: ModelPart, name: str
) -> DenseWeights | ExpertWeights:
    if isinstance(spec, ExpertsSpec):
        return experts(reader, spec, names, mine, name)
    return dense(reader, spec, mine.columns(spec.columns), names, f"{name}mlp.")


def _norms(reader: Reader, spec: DecoderSpec, names: Names, name: str) -> NormWeights:
    found = {
        field: reader.norm(f"{name}{called}.weight")
        for field, called in normed(spec.norms, names.norms).items()
    }
    return NormWeights(*(found.get(field, reader.none()) for field in NormWeights._fields))


def _attention(
    reader: Reader, spec: GqaSpec | MlaSpec, names: Names, mine: ModelPart, name: str
) -> GqaWeights | MlaWeights:
    if isinstance(spec, MlaSpec):
        return mla(reader, spec, names.latent, mine, name)
    return gqa(reader, spec, names, mine, name)


def gqa(reader: Reader, spec: GqaSpec, names: Names, mine: ModelPart, name: str) -> GqaWeights:
    """Grouped-query attention, this rank's heads of it."""
    attention = f"{name}self_attn."
    rows = _head_rows(spec, mine.heads)
    out_bias = reader.none()
    if spec.out_bias:
        out_bias = reader.read(f"{attention}o_proj.bias")
        if mine.tp_rank:
            out_bias = torch.zeros_like(out_bias)
    bias = reader.none()
    if spec.qkv_bias:
        bias = torch.cat([reader.read(*part) for part in _qkv(spec, names, mine, "bias", name)])
    return GqaWeights(
        qkv=matrix(reader, *_qkv(spec, names, mine, "weight", name)),
        qkv_bias=bias,
        qk_norm=_qk_norm(reader, spec, mine, attention),
        out=matrix(reader, (f"{attention}o_proj.weight", None, rows)),
        out_bias=out_bias,
        sinks=reader.read(f"{attention}sinks", mine.heads) if spec.sinks else reader.none(),
    )


def _qkv(spec: GqaSpec, names: Names, mine: ModelPart, kind: str, name: str) -> list[Part]:
    """Weights or biases of the three projections, this shard's heads of each."""
    attention, parts, start = f"{name}self_attn.", list[Part](), 0
    for letter, heads, total in (
        ("q", mine.heads, spec.heads),
        ("k", mine.kv_heads, spec.kv_heads),
        ("v", mine.kv_heads, spec.kv_heads),
    ):
        rows = _head_rows(spec, heads)
        if names.joined:
            parts.append((f"{attention}qkv_proj.{kind}", moved(rows, start)))
            start += total * spec.head_dim
        else:
            parts.append((f"{attention}{letter}_proj.{kind}", rows))
    return parts


def _qk_norm(reader: Reader, spec: GqaSpec, mine: ModelPart, name: str) -> Tensor:
    """[H + K, D]: a row a head, alike where each head is normalised by itself."""
    if spec.qk_norm == "none":
        return reader.none()
    rows = []
    for letter, heads in (("q", mine.heads), ("k", mine.kv_heads)):
        weight = f"{name}{letter}_norm.weight"
        if spec.qk_norm == "head":
            rows.append(reader.norm(weight).expand(len(heads), -1))
        else:
            own = reader.norm(weight, _head_rows(spec, heads))
            rows.append(own.view(len(heads), spec.head_dim))
    return torch.cat(rows)


def _head_rows(spec: GqaSpec, heads: range) -> range:
    """The rows of a projection that make these heads."""
    return _scaled(heads, spec.head_dim)


def _scaled(part: range, by: int) -> range:
    return range(part.start * by, part.stop * by)
