"""The bounds of a Submit's values. The API refuses a value outside of them by its field's name, and
the scheduler checks again before it believes a message.

Where the field's meaning sets no bound, the tensors of a rank do.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pds_engine.messages.requests import Sampling, Submit

INT32_MAX = 2**31 - 1
SEED_BITS = 63
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOP_IDS = 128
"""Stop ids that a client may name; the model's own ends of a sequence come on top."""
MAX_BIASED = 1024


@dataclass(frozen=True, slots=True)
class Bound:
    """Both ends are inside."""

    least: float
    most: float

    def holds(self, value: float) -> bool:
        """NaN is outside of every bound."""
        return self.least <= value <= self.most


TOKEN_ID = Bound(0, INT32_MAX)
MAX_TOKENS = Bound(1, INT32_MAX)
MIN_TOKENS = Bound(0, INT32_MAX)
TEMPERATURE = Bound(0, 2)
CHANCE = Bound(0, 1)
TOP_K = Bound(0, INT32_MAX)
PENALTY = Bound(-2, 2)
REPETITION = Bound(0.01, 2)
"""Logits are divided by it: a value that float32 rounds to 0 would make them infinite."""
BIAS = Bound(-100, 100)
LOGPROBS = Bound(0, MAX_LOGPROBS)
PRIORITY = Bound(-(2**31), INT32_MAX)
SEED = Bound(0, 2**SEED_BITS - 1)
TIME = Bound(0, 2**53)
"""Seconds since the epoch, as a double counts them exactly."""

SAMPLING: dict[str, Bound] = {
    "max_tokens": MAX_TOKENS,
    "temperature": TEMPERATURE,
    "top_p": CHANCE,
    "top_k": TOP_K,
    "min_p": CHANCE,
    "repetition_penalty": REPETITION,
    "presence_penalty": PENALTY,
    "frequency_penalty": PENALTY,
    "min_tokens": MIN_TOKENS,
    "logprobs": LOGPROBS,
    "choice": Bound(0, MAX_CHOICES - 1),
    "prompt_logprobs": LOGPROBS,
}
"""By the field of Sampling; None, where a field may be None, is inside."""
SUBMIT: dict[str, Bound] = {
    "seed": SEED,
    "priority": PRIORITY,
    "deadline": TIME,
    "since": TIME,
}


def outside(submit: Submit) -> tuple[str, str] | None:
    """The first field that is out of its bounds, and what is wrong with it; None when all fit."""
    sampling = submit.sampling
    return (
        _fields(submit, SUBMIT)
        or _fields(sampling, SAMPLING)
        or _each("prompt", submit.prompt_ids, TOKEN_ID)
        or _each("output_ids", submit.output_ids, TOKEN_ID)
        or _each("stop_token_ids", sampling.stop_token_ids, TOKEN_ID)
        or _each("logit_bias", sampling.logit_bias, TOKEN_ID)
        or _each("logit_bias", sampling.logit_bias.values(), BIAS)
    )


def _fields(of: Submit | Sampling, bounds: dict[str, Bound]) -> tuple[str, str] | None:
    for name, bound in bounds.items():
        value = getattr(of, name)
        if value is not None and not bound.holds(value):
            return name, _said(name, value, bound)
    return None


def _each(name: str, values: Iterable[float], bound: Bound) -> tuple[str, str] | None:
    wrong = next((value for value in values if not bound.holds(value)), None)
    return None if wrong is None else (name, _said(name, wrong, bound))


def _said(name: str, value: float, bound: Bound) -> str:
    return f"{name}: {value!r} is not from {bound.least} to {bound.most}"
