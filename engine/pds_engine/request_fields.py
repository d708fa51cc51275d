"""Fields of a body that router and engine both read: in one place, so that they never differ."""

from dataclasses import dataclass

from pds_engine.messages.bounds import MAX_CHOICES, MAX_TOKENS, SEED_BITS


@dataclass(frozen=True, slots=True)
class RequestFields:
    """A field that is missing, or that the engine refuses, has its default."""

    stream: bool = False
    choices: int = 1
    max_tokens: int | None = None
    seed: int | None = None
    """The 63 bits that a seed comes to: any 64-bit integer is one."""


def request_fields(
    *,
    stream: object = None,
    n: object = None,
    max_tokens: object = None,
    max_completion_tokens: object = None,
    seed: object = None,
) -> RequestFields:
    """The fields of these names, as JSON has them."""
    return RequestFields(
        stream=stream is True,
        choices=_within(n, 1, MAX_CHOICES) or 1,
        max_tokens=_natural(max_completion_tokens) or _natural(max_tokens),
        seed=seed_bits(_within(seed, -(2**63), 2**63 - 1)),
    )


def seed_bits(seed: int | None) -> int | None:
    """The bits of a seed that key the random numbers: never negative, for a header to carry."""
    return None if seed is None else seed & (2**SEED_BITS - 1)


def _natural(value: object) -> int | None:
    return _within(value, int(MAX_TOKENS.least), int(MAX_TOKENS.most))


def _within(value: object, least: int, most: int) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    return value if fits and isinstance(value, int) else None
