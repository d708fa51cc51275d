"""Name and shape of every tensor of a checkpoint that a decoder consumes. No torch."""

from collections.abc import Mapping

from pds_engine.models.names import EMBEDDING, HEAD, NORM, LatentNames, Names, NormNames, layer_name
from pds_engine.spec import (
    DecoderSpec,
    DenseSpec,
    ExpertsSpec,
    GqaSpec,
    LayerSpec,
    MlaSpec,
    Norms,
)

Shapes = dict[str, tuple[int, ...]]
_NORMS: Mapping[Norms, tuple[str, ...]] = {
    "pre": ("attention_in", "feed_in"),
    "post": ("attention_out", "feed_out"),
    "sandwich": NormNames._fields,
}


def shapes(spec: DecoderSpec, names: Names) -> Shapes:
    """All that the ranks of a group read, all together."""
    hidden, vocabulary = (spec.hidden,), (spec.vocab, spec.hidden)
    found: Shapes = {EMBEDDING: vocabulary, NORM: hidden, HEAD: vocabulary}
    for index, layer in enumerate(spec.layers):
        prefix = layer_name(index)
        found.update({f"{prefix}{n}": s for n, s in _layer(spec, layer, names).items()})
    return found


def normed(norms: Norms, names: NormNames) -> dict[str, str]:
    """What the norms that a layer has are called in a checkpoint, by field of NormWeights."""
    return {field: getattr(names, field) for field in _NORMS[norms]}


def _layer(spec: DecoderSpec, layer: LayerSpec, names: Names) -> Shapes:
    hidden = spec.hidden
    found: Shapes = {
        f"{name}.weight": (hidden,) for name in normed(spec.norms, names.norms).values()
    }
    if isinstance(layer.attention, GqaSpec):
        found |= _gqa(layer.attention, hidden, names)
    else:
        found |= _mla(layer.attention, hidden, names.latent)
    if isinstance(layer.feed, DenseSpec):
        found |= gated("mlp.", layer.feed.columns, hidden, names)
    else:
        found |= _experts(layer.feed, hidden, names)
    return found


def _gqa(spec: GqaSpec, hidden: int, names: Names) -> Shapes:
    keys = spec.kv_heads * spec.head_dim
    rows = {"q": spec.heads * spec.head_dim, "k": keys, "v": keys}
    if names.joined:
        rows = {"qkv": sum(rows.values())}
    found: Shapes = {"self_attn.o_proj.weight": (hidden, spec.heads * spec.head_dim)}
    for letter, count in rows.items():
        found[f"self_attn.{letter}_proj.weight"] = (count, hidden)
        if spec.qkv_bias:
            found[f"self_attn.{letter}_proj.bias"] = (count,)
    if spec.out_bias:
        found["self_attn.o_proj.bias"] = (hidden,)
    if spec.qk_norm != "none":
        for letter, heads in (("q", spec.heads), ("k", spec.kv_heads)):
            size = spec.head_dim * (heads if spec.qk_norm == "whole" else 1)
            found[f"self_attn.{letter}_norm.weight"] = (size,)
    if spec.sinks:
        found["self_attn.sinks"] = (spec.heads,)
    return found


def _experts(spec: ExpertsSpec, hidden: int, names: Names) -> Shapes:
    called = names.experts
    found: Shapes = {f"{called.router}.weight": (spec.experts, hidden)}
    if spec.gate.bias:
        found[f"{called.router}.bias"] = (spec.experts,)
    if spec.gate.correction:
        found[called.correction] = (spec.experts,)
    if called.gate_up:
        found[called.gate_up] = (spec.experts, hidden, 2 * spec.columns)
        found[called.down] = (spec.experts, spec.columns, hidden)
        if spec.bias:
            found[f"{called.gate_up}_bias"] = (spec.experts, 2 * spec.columns)
            found[f"{called.down}_bias"] = (spec.experts, hidden)
    for expert in range(0 if called.gate_up else spec.experts):
        found[f"{called.gate.format(expert)}.weight"] = (spec.columns, hidden)
        found[f"{called.up.format(expert)}.weight"] = (spec.columns, hidden)
        found[f"{called.down.format(expert)}.weight"] = (hidden, spec.columns)
    if spec.shared_columns:
        found |= gated(f"{called.shared}.", spec.shared_columns, hidden, names)
    if spec.shared_gate:
        found[f"{called.shared_gate}.weight"] = (1, hidden)
    return found


def _mla(spec: MlaSpec, hidden: int, names: LatentNames) -> Shapes:
    query, value = spec.heads * (spec.nope_dim + spec.rope_dim), spec.heads * spec.value_dim
    found: Shapes = {
        names.kv_a: (spec.latent, hidden),
        names.kv_a_norm: (spec.kv_rank,),
        names.kv_b: (spec.heads * spec.nope_dim + value, spec.kv_rank),
        names.out: (hidden, value),
    }
    if spec.q_rank is None:
        found[names.q] = (query, hidden)
    else:
        found[names.q_a] = (spec.q_rank, hidden)
        found[names.q_a_norm] = (spec.q_rank,)
        found[names.q_b] = (query, spec.q_rank)
    return {f"self_attn.{name}.weight": shape for name, shape in found.items()}


def gated(prefix: str, columns: int, hidden: int, names: Names) -> Shapes:
    """A gated block's tensors."""
    rows = {"gate_up": 2 * columns} if names.joined else {"gate": columns, "up": columns}
    found: Shapes = {f"{prefix}{part}_proj.weight": (n, hidden) for part, n in rows.items()}
    return {**found, f"{prefix}down_proj.weight": (hidden, columns)}
