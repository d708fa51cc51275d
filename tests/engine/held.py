"""What a decoder's weights consist of, whatever their classes."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor


def tensors(weights: Any) -> Iterator[Tensor]:
    """Every tensor in it, in order: in tuples, lists and dataclasses."""
    if isinstance(weights, Tensor):
        yield weights
    elif isinstance(weights, tuple | list):
        for one in weights:
            yield from tensors(one)
    elif is_dataclass(weights):
        for field in fields(weights):
            yield from tensors(getattr(weights, field.name))
