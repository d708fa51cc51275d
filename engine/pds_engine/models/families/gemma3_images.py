"""Gemma 3 that also sees images: its text part is served, and no request may have an image."""

from pds_engine.errors import ConfigError
from pds_engine.models.families import gemma2, gemma3
from pds_engine.models.family import Family
from pds_engine.spec import DecoderSpec, Json

NAME = "Gemma3ForConditionalGeneration"
_PART = "text_config"


def spec(config: Json) -> DecoderSpec:
    """Family.spec of the text part."""
    return gemma3.decoder(config, NAME)


def text(config: Json) -> Json:
    """Family.text: text_config, and what the whole model says besides, which counts.

    Raises:
        ConfigError: there is no text_config, or it is another family's.
    """
    part = config.get(_PART)
    if not isinstance(part, dict):
        raise ConfigError(f"config.json: {_PART} must be an object, got {part!r}")
    kind = part.get("model_type", gemma3.FAMILY.model_type)
    if kind != gemma3.FAMILY.model_type:
        raise ConfigError(
            f"config.json: {_PART}.model_type {kind!r} is not that of {NAME}",
            hint=f"it is {gemma3.FAMILY.model_type!r}",
        )
    return {**part, **{key: value for key, value in config.items() if key != _PART}}


FAMILY = Family(
    architecture=NAME,
    model_type="gemma3",
    spec=spec,
    text=text,
    names=gemma2.NAMES._replace(
        prefix="language_model.", others=("vision_tower.", "multi_modal_projector.")
    ),
    reads=gemma3.READS
    | {
        "vision_config",
        "mm_tokens_per_image",
        "boi_token_index",
        "eoi_token_index",
        "image_token_index",
    },
    # of that key, too, transformers computes nothing in this model
    fixed=gemma3.FIXED | {"final_logit_softcapping": (None,)},
)
