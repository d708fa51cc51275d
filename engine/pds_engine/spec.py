"""What a decoder computes, layer by layer, apart from the weights themselves. No torch.

models.families reads it from a model folder's config.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Json = Mapping[str, Any]
Activation = Literal["silu", "gelu_tanh", "clamped"]
"""Of the gate of a feed-forward block; `pds_kernels.activation` says what each is."""


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """All pairs turn `factor` times slower (Chen et al., 2023)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Pairs with few turns in `original` positions are slowed by `factor` (Llama 3.1)."""

    factor: float
    low: float
    """A pair with fewer turns is slowed in full."""
    high: float
    """A pair with more turns is not slowed; between `low` and `high` it is interpolated."""
    original: int
    """Positions that the model was first trained on."""


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """As Llama 3.1's, but interpolated over the dimensions (Peng et al., "YaRN", 2023)."""

    factor: float
    original: int
    """Positions that the model was first trained on."""
    fast: float = 32.0
    """A pair with more turns in `original` positions is not slowed (beta_fast)."""
    slow: float = 1.0
    """A pair with fewer turns is slowed in full (beta_slow)."""
    truncate: bool = True
    """The two dimensions where the interpolation begins and ends are rounded to whole ones."""


@dataclass(frozen=True, slots=True)
class LongScaling:
    """A factor for each pair, of two sets (Ding et al., "LongRoPE", 2024).

    transformers changes to the long factors when a sequence passes `original` positions. The keys
    computed before would then no longer fit, so a server decides once, by max_model_len.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    """Positions that the model was first trained on."""

    def is_long(self, length: int) -> bool:
        """Whether a server of sequences of up to `length` tokens takes the long factors."""
        return length > self.original


@dataclass(frozen=True, slots=True)
class ProportionalScaling:
    """Only the first `pairs` of the pairs turn, `factor` times slower."""

    pairs: int
    factor: float = 1.0


Scaling = LinearScaling | Llama3Scaling | YarnScaling | LongScaling | ProportionalScaling
"""How frequencies are stretched."""


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary positions: how fast each pair of a head's dimensions turns (Su et al., 2021)."""

    theta: float
    dims: int
    """Leading dimensions of a head that are rotated; an even number."""
    scaling: Scaling | None = None
    attention_factor: float = 1.0
    """Cosines and sines are multiplied by it (YaRN, LongRoPE)."""
    interleaved: bool = False
    """The checkpoint's pairs are (2i, 2i + 1), as DeepSeek's, not (i, i + dims / 2). The loader
    reorders the rows of the projections (layers.rope.by_halves)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GqaSpec:
    """Attention whose query heads share keys and values (Ainslie et al., "GQA", 2023)."""

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeSpec
    scale: float
    """Scores are multiplied by it."""
    qk_norm: Literal["none", "head", "whole"] = "none"
    """Queries and keys are normalised before the rotation: each head (Qwen3), or all together
    (OLMo 2)."""
    qkv_bias: bool = False
    out_bias: bool = False
    window: int | None = None
    """Tokens that a token sees, itself included; None: all before it."""
    softcap: float | None = None
    """Scores s become softcap · tanh(s / softcap) (Gemma 2)."""
    sinks: bool = False
    """A learned logit a head takes part in the softmax, and gives nothing (gpt-oss)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-AI, "DeepSeek-V2", 2024): a token's keys and values are
    `kv_rank` numbers, from which each head expands its own, and `rope_dim` that all heads share."""

    heads: int
    q_rank: int | None
    """Queries go through so many numbers; None: they are projected at once (V2-Lite)."""
    kv_rank: int
    nope_dim: int
    """Of a head's query and key: what is not rotated."""
    rope_dim: int
    value_dim: int
    rope: RopeSpec
    scale: float

    @property
    def latent(self) -> int:
        """Numbers of a token in the KV cache."""
        return self.kv_rank + self.rope_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseSpec:
    """A gated feed-forward block."""

    columns: int
    """intermediate_size."""
    activation: Activation = "silu"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateSpec:
    """How a token's experts are chosen, and what each one's result counts."""

    score: Literal["softmax", "sigmoid", "softmax_of_chosen"] = "softmax"
    """softmax_of_chosen: over the chosen experts' logits alone (gpt-oss)."""
    renormalise: bool = False
    """The weights of a token's experts are divided by their sum."""
    scaling: float = 1.0
    """Weights are multiplied by it (routed_scaling_factor)."""
    groups: int = 1
    top_groups: int = 1
    """Experts are chosen from the best so many of `groups` equal groups."""
    group_score: Literal["max", "top2"] = "max"
    """A group is as good as its best expert (DeepSeek-V2), or as the sum of its best two (V3)."""
    correction: bool = False
    """A learned number an expert is added to its score while experts are chosen (V3)."""
    bias: bool = False
    """The projection to logits has one (gpt-oss)."""
    wide: bool = False
    """Logits are computed in float32 (DeepSeek), and not in the model's dtype."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertsSpec:
    """A mixture of experts (Shazeer et al., 2017): `top_k` gated blocks of many, for each token."""

    experts: int
    top_k: int
    columns: int
    """Of each expert: moe_intermediate_size."""
    gate: GateSpec
    shared_columns: int = 0
    """Of the block that every token passes besides; 0: there is none."""
    shared_gate: bool = False
    """What it gives is multiplied by a sigmoid of its own (Qwen2-MoE)."""
    activation: Activation = "silu"
    bias: bool = False
    """Experts' projections have one (gpt-oss)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSpec:
    """One layer. Layers of equal specs share their kernels."""

    attention: GqaSpec | MlaSpec
    feed: DenseSpec | ExpertsSpec


Norms = Literal["pre", "post", "sandwich"]
"""Where layers normalise: what attention and the feed-forward block read (pre), what they give
(post; OLMo 2), or both (sandwich; Gemma 2 and 3)."""


class KvSpec(NamedTuple):
    """What a token's keys and values are, the same in every layer."""

    heads: int
    """1 where `latent` is set."""
    head_dim: int
    """0 where `latent` is set."""
    latent: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Everything that decides the computation, apart from the weights themselves."""

    architecture: str
    vocab: int
    hidden: int
    layers: tuple[LayerSpec, ...]
    norm_eps: float
    tied: bool
    max_position: int
    norms: Norms = "pre"
    norm_offset: float = 0.0
    """Added to the weights of the norms (Gemma: 1)."""
    norm_wide: bool = False
    """Norms multiply by their weights in float32, and round afterwards (Gemma, gpt-oss)."""
    embedding_scale: float = 1.0
    """What is embedded is multiplied by it (Gemma)."""
    softcap: float | None = None
    """As of scores, for the logits (Gemma 2)."""

    @property
    def heads(self) -> int:
        """Query heads, the same in every layer."""
        return self.layers[0].attention.heads

    @property
    def kv(self) -> KvSpec:
        attention = self.layers[0].attention
        if isinstance(attention, MlaSpec):
            return KvSpec(1, 0, attention.latent)
        return KvSpec(attention.kv_heads, attention.head_dim)

    @property
    def window(self) -> int | None:
        """The largest window of all layers; None: some layer sees all tokens."""
        widest = 0
        for layer in self.layers:
            window = None if isinstance(layer.attention, MlaSpec) else layer.attention.window
            if window is None:
                return None
            widest = max(widest, window)
        return widest
