"""How a family's checkpoints name their tensors, and where in them a matrix of ours stands."""

from typing import NamedTuple

EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


class NormNames(NamedTuple):
    """Of a layer's norms; those that a layer has not are not asked for."""

    attention_in: str = "input_layernorm"
    attention_out: str = "post_attention_layernorm"
    feed_in: str = "post_attention_layernorm"
    feed_out: str = "post_feedforward_layernorm"


class ExpertNames(NamedTuple):
    """Of a mixture of experts, within a layer. `{}` is the expert's number."""

    router: str = "mlp.gate"
    correction: str = "mlp.gate.e_score_correction_bias"
    gate: str = "mlp.experts.{}.gate_proj"
    up: str = "mlp.experts.{}.up_proj"
    down: str = "mlp.experts.{}.down_proj"
    gate_up: str = ""
    """Where one tensor has the gates and ups of all experts (gpt-oss): [E, hidden, 2C], with gate's
    and up's columns by turns. That of `down` is [E, C, hidden] there, and biases are beside them,
    named with `_bias` behind."""
    shared: str = "mlp.shared_expert"
    shared_gate: str = "mlp.shared_expert_gate"


class LatentNames(NamedTuple):
    """Of multi-head latent attention, within `self_attn`."""

    q: str = "q_proj"
    """Where queries are projected at once."""
    q_a: str = "q_a_proj"
    q_a_norm: str = "q_a_layernorm"
    q_b: str = "q_b_proj"
    kv_a: str = "kv_a_proj_with_mqa"
    kv_a_norm: str = "kv_a_layernorm"
    kv_b: str = "kv_b_proj"
    out: str = "o_proj"


class Names(NamedTuple):
    """What most checkpoints call things is the default."""

    norms: NormNames = NormNames()
    experts: ExpertNames = ExpertNames()
    prefix: str = ""
    """Before all of them, where the decoder is a part of a model."""
    others: tuple[str, ...] = ()
    """What the names of that model's other parts begin with: their tensors are left unread."""
    latent: LatentNames = LatentNames()
    joined: bool = False
    """qkv_proj and gate_up_proj hold what others have as three tensors and as two (Phi-3)."""


NAMES = Names()


def layer_name(index: int) -> str:
    """What the names of layer `index`'s tensors begin with."""
    return f"model.layers.{index}."
