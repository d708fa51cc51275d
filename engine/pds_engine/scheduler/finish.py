"""When a request has said enough. Stop strings are the API server's: it sends Cancel."""

from pds_engine.errors import NotFinite
from pds_engine.messages import FinishReason, Sampling


def finish_reason(sampling: Sampling, index: int, token: int) -> FinishReason | None:
    """Why output number `index` (from 0), being `token`, is the last one; None when it is not.

    Stop ids count from `min_tokens` tokens on; the workers' sampler does not draw them before.
    """
    if token in sampling.stop_token_ids and index >= sampling.min_tokens:
        return "stop"
    return "length" if index + 1 >= sampling.max_tokens else None


def no_finite_score() -> NotFinite:
    """Why a request ends whose next token cannot be chosen."""
    return NotFinite(
        "the model's scores for the next token are no finite numbers",
        hint="another prompt may do; model.dtype bfloat16 or float32 holds larger numbers",
    )
