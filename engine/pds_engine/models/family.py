"""What the registry knows of a family of models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pds_engine.models.names import NAMES, Names
from pds_engine.spec import DecoderSpec, Json


def _whole(config: Json) -> Json:
    return config


def _none(config: Json) -> int:
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of decoders: how its config.json and its checkpoints are read.

    A key that config.json lacks means what the family's configuration class of transformers says;
    null is different: it means "derive it", or "none".
    """

    architecture: str
    model_type: str
    spec: Callable[[Json], DecoderSpec]
    """What config.json says; models.options has looked at the keys that it does not read.

    Raises ConfigError: a key is missing, or has a value that this engine does not compute."""
    text: Callable[[Json], Json] = _whole
    """What of config.json is the decoder's, where a model has more parts; `spec` is given it."""
    names: Names = NAMES
    reads: frozenset[str] = frozenset()
    """Keys that `spec` reads, beside those that all families do (options.READ)."""
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys that may only have these values, the first one where they are missing; they go before
    options.FIXED."""
    own_code: frozenset[str] = frozenset()
    """Classes of the code that its checkpoints bring (auto_map), which compute what `spec` says."""
    predictors: Callable[[Json], int] = _none
    """How many layers a checkpoint may have behind the model's, which predict further tokens
    (multi-token prediction; DeepSeek-V3). Nobody computes them: their tensors are passed over."""
