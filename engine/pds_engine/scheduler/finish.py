"""A request's next token, and when it has said enough. Stop strings are the API server's: it sends
Cancel."""

from pds_engine.errors import NotFinite
from pds_engine.messages import FinishReason, Sampling, Token, TokenLogprobs
from pds_engine.scheduler.request import Request


def next_token(
    request: Request,
    token: int,
    logprobs: TokenLogprobs | None,
    prompt_logprobs: tuple[TokenLogprobs, ...],
    cached_tokens: int,
    reason: FinishReason | None = None,
) -> Token:
    """The message to its server about the request's next output, which is `token`.

    It is the last one if it ends the request here, or if it did so where it was computed
    (`reason`).
    """
    index, submit = len(request.outputs), request.submit
    return Token(
        request_id=submit.request_id,
        index=index,
        token=token,
        logprobs=logprobs,
        finish_reason=reason or finish_reason(submit.sampling, index, token),
        cached_tokens=cached_tokens,
        prompt_logprobs=prompt_logprobs,
    )


def finish_reason(sampling: Sampling, index: int, token: int) -> FinishReason | None:
    """Why output number `index` (from 0), being `token`, is the last one; None when it is not.

    Stop ids count from `min_tokens` tokens on; the workers' sampler does not draw them before.
    """
    stops = sampling.stop_token_ids
    if stops and token in stops and index >= sampling.min_tokens:
        return "stop"
    return "length" if index + 1 >= sampling.max_tokens else None


def no_finite_score() -> NotFinite:
    """The error of a request whose next token cannot be chosen."""
    return NotFinite(
        "the model's scores for the next token are no finite numbers",
        hint="another prompt may do; model.dtype bfloat16 or float32 holds larger numbers",
    )
