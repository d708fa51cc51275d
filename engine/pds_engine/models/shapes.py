"""Name and shape of every tensor of a checkpoint that a decoder consumes. No torch."""

from collections.abc import Mapping

from pds_engine.models.names import EMBEDDING, HEAD, NORM, Names, NormNames, layer_name
from pds_engine.spec import DecoderSpec, DenseSpec, GqaSpec, LayerSpec, Norms

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
    if isinstance(layer.feed, DenseSpec):
        found |= gated("mlp.", layer.feed.columns, hidden, names)
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


def gated(prefix: str, columns: int, hidden: int, names: Names) -> Shapes:
    """A gated block's tensors."""
    rows = {"gate_up": 2 * columns} if names.joined else {"gate": columns, "up": columns}
    found: Shapes = {f"{prefix}{part}_proj.weight": (n, hidden) for part, n in rows.items()}
    return {**found, f"{prefix}down_proj.weight": (hidden, columns)}
