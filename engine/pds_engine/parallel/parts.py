"""How the tokens of a pass are shared out over the ranks of a stage. Pure; no torch.

Between attention and the MLP, and between layers and stages, a rank holds the hidden states of a
part of the tokens. The ranks of an attention group hold equal parts of their batch, in order: that
is what a batch is padded for (sequence parallelism; Korthikanti et al., "Reducing Activation
Recomputation in Large Transformer Models", 2022).
"""

from typing import NamedTuple

from pds_engine.errors import ProtocolError
from pds_engine.messages import StepPlan


class Parts(NamedTuple):
    """Tokens that each rank holds, padding included."""

    batch: tuple[int, ...]
    """Of this dp rank's batch, by rank of the attention group: all alike."""
    stage: tuple[int, ...]
    """Of all dp ranks' batches, by rank of the stage."""


def part_tokens(plan: StepPlan, tp: int) -> int:
    """Tokens of the plan's batch that each of `tp` ranks holds.

    Raises:
        ProtocolError: they have no equal parts, or there are more tokens than the plan says.
    """
    tokens = sum(row.length for row in plan.rows)
    if plan.padded_tokens % tp:
        raise ProtocolError(
            f"step {plan.step_id} is padded to {plan.padded_tokens} tokens, which {tp} ranks of "
            "attention cannot share out evenly"
        )
    if tokens > plan.padded_tokens:
        raise ProtocolError(
            f"step {plan.step_id} has {tokens} tokens and is padded to {plan.padded_tokens}"
        )
    return plan.padded_tokens // tp


def parts(plan: StepPlan, tp: int, dp: int, dp_rank: int) -> Parts:
    """Who holds what of the pass, from the plan of dp rank `dp_rank`.

    Raises:
        ProtocolError: the plan says of other dp ranks what cannot be, or nobody has a token.
    """
    own = (part_tokens(plan, tp),) * tp
    if dp == 1 and not plan.dp_tokens:
        return Parts(own, own)
    counts = plan.dp_tokens
    if len(counts) != dp or counts[dp_rank] != plan.padded_tokens:
        raise ProtocolError(
            f"step {plan.step_id} of dp rank {dp_rank} of {dp} is padded to {plan.padded_tokens} "
            f"tokens, and the dp ranks have {list(counts)}"
        )
    if not any(counts) or any(count % tp for count in counts):
        raise ProtocolError(
            f"step {plan.step_id}: {tp} ranks of attention cannot share out the {list(counts)} "
            "tokens of the dp ranks evenly, or nobody has one"
        )
    return Parts(own, tuple(count // tp for count in counts for _ in range(tp)))
