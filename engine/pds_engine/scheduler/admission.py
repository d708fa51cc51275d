"""Requests that could never be served here: each is rejected at once, and the error says why."""

from pds_engine.errors import InvalidRequest, RequestError, TooLong
from pds_engine.messages import Submit
from pds_engine.messages.bounds import outside
from pds_engine.scheduler.request import growth
from pds_engine.scheduler.settings import Settings


def reject_reason(message: Submit, settings: Settings, pages: int) -> RequestError | None:
    """Why a group with a pool of `pages` could never serve `message`; None when it could."""
    if (wrong := outside(message)) is not None:
        return InvalidRequest(wrong[1], param=wrong[0])
    role, wanted, prompt = settings.role, message.sampling.max_tokens, len(message.prompt_ids)
    if message.role_hint != role or (role == "decode" and message.source is None):
        return InvalidRequest(
            f"a {role} group was given a request for {message.role_hint}", hint="ask the router"
        )
    if not prompt:
        return InvalidRequest("the prompt is empty", param="prompt")
    if wanted <= len(message.output_ids):
        return InvalidRequest(
            f"max_tokens is {wanted}, and {len(message.output_ids)} tokens are given",
            param="max_tokens",
        )
    if prompt + wanted > settings.max_model_len:
        return TooLong(
            f"the prompt's {prompt} tokens and max_tokens {wanted} exceed the context of "
            f"{settings.max_model_len} tokens",
            param="max_tokens",
        )
    needed = settings.at_once(growth(message, settings))
    if needed > pages:
        return TooLong(
            f"the request needs {needed} KV pages, the group has {pages}",
            hint="shorten the prompt or lower max_tokens",
            param="max_tokens",
        )
    return None
