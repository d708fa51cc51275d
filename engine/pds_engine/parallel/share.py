"""What a rank holds of a layer: the shapes of its tensors, by which memory is counted. No torch.

They are those of models.weights: tests/engine/runner/test_sizes.py loads models and compares.
"""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

from pds_engine.spec import DecoderSpec, DenseSpec, ExpertsSpec, GqaSpec, LayerSpec, MlaSpec


class Share(NamedTuple):
    """How much of a layer: all numbers of its own, whatever the model has."""

    heads: int
    kv_heads: int
    columns: int
    """Of the dense block, or of each of its experts."""
    experts: int = 0
    shared_columns: int = 0


class Held(NamedTuple):
    """A tensor that a rank holds."""

    shape: tuple[int, ...]
    wide: bool = False
    """In float32, whatever the model's dtype."""

    @property
    def elements(self) -> int:
        return prod(self.shape)


def whole(layer: LayerSpec, *, passed: bool = False) -> Share:
    """All of `layer`; with `passed`, of its experts only as many as a token passes."""
    attention, feed = layer.attention, layer.feed
    kv_heads = attention.kv_heads if isinstance(attention, GqaSpec) else 1
    if isinstance(feed, DenseSpec):
        return Share(attention.heads, kv_heads, feed.columns)
    experts = feed.top_k if passed else feed.experts
    return Share(attention.heads, kv_heads, feed.columns, experts, feed.shared_columns)


def layer_tensors(spec: DecoderSpec, layer: LayerSpec, share: Share) -> list[Held]:
    """What a rank with this share of `layer` holds of it."""
    hidden = spec.hidden
    norms = (4 if spec.norms == "sandwich" else 2) * [Held((hidden,), spec.norm_wide)]
    attention: Iterator[Held]
    if isinstance(layer.attention, MlaSpec):
        attention = _mla(layer.attention, hidden, share.heads)
    else:
        attention = _gqa(spec, layer.attention, share)
    if isinstance(layer.feed, DenseSpec):
        return [*norms, *attention, *_gated(share.columns, hidden)]
    return [*norms, *attention, *_experts(layer.feed, hidden, share)]


def elements(spec: DecoderSpec, layer: LayerSpec, *, passed: bool = False) -> int:
    """Numbers of the whole layer; with `passed` only of the experts that a token passes."""
    return sum(each.elements for each in layer_tensors(spec, layer, whole(layer, passed=passed)))


def _gqa(decoder: DecoderSpec, spec: GqaSpec, share: Share) -> Iterator[Held]:
    hidden = decoder.hidden
    rows = (share.heads + 2 * share.kv_heads) * spec.head_dim
    yield Held((rows, hidden))
    yield Held((hidden, share.heads * spec.head_dim))
    if spec.qkv_bias:
        yield Held((rows,))
    if spec.out_bias:
        yield Held((hidden,))
    if spec.qk_norm != "none":
        yield Held((share.heads + share.kv_heads, spec.head_dim), decoder.norm_wide)
    if spec.sinks:
        yield Held((share.heads,))


def _mla(spec: MlaSpec, hidden: int, heads: int) -> Iterator[Held]:
    inputs = hidden
    if spec.q_rank is not None:
        inputs = spec.q_rank
        yield Held((inputs, hidden))
        yield Held((inputs,))
    yield Held((heads * (spec.nope_dim + spec.rope_dim), inputs))
    yield Held((spec.latent, hidden))
    yield Held((spec.kv_rank,))
    yield Held((heads, spec.nope_dim, spec.kv_rank))
    yield Held((heads, spec.value_dim, spec.kv_rank))
    yield Held((hidden, heads * spec.value_dim))


def _gated(columns: int, hidden: int) -> Iterator[Held]:
    yield Held((2 * columns, hidden))
    yield Held((hidden, columns))


def _experts(spec: ExpertsSpec, hidden: int, share: Share) -> Iterator[Held]:
    yield Held((spec.experts, hidden), spec.gate.wide)
    if spec.gate.bias:
        yield Held((spec.experts,), spec.gate.wide)
    if spec.gate.correction:
        yield Held((spec.experts,), wide=True)
    yield Held((share.experts, 2 * share.columns, hidden))
    yield Held((share.experts, hidden, share.columns))
    if spec.bias:
        yield Held((share.experts, 2 * share.columns))
        yield Held((share.experts, hidden))
    if spec.shared_columns:
        yield from _gated(share.shared_columns, hidden)
    if spec.shared_gate:
        yield Held((1, hidden))
