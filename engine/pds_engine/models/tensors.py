"""Which tensors a decoder consumes, and whether a checkpoint has these and no others. No torch.

A tensor that nobody reads is refused like one that is missing: what it would have done to the
result (a bias, a scale, an adapter, one more layer) is lost without a word.
"""

import logging
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from pds_engine.errors import ConfigError
from pds_engine.models import headers, quantized, scales
from pds_engine.models.config_json import read_config
from pds_engine.models.files import weight_files
from pds_engine.models.headers import Stored
from pds_engine.models.names import EMBEDDING, HEAD, Names, layer_name
from pds_engine.models.quantized import CURE
from pds_engine.models.registry import family_of
from pds_engine.models.shapes import shapes
from pds_engine.spec import DecoderSpec

logger = logging.getLogger("pds.models")

_WHOLE = frozenset({"F64", "F32", "F16", "BF16"})
_HARMLESS = re.compile(r"(^|\.)rotary_emb\.inv_freq$")
"""Old exports of Llama: computed from rope_theta, and read by nobody."""
_PACKED = re.compile(
    r"(_scale|_scale_inv|_scale_2|\.scales?|\.scale_inv|\.biases|_zero_point|\.zero_point|\.g_idx"
    r"|\.qweight|\.qzeros|_packed|_shape|\.absmax|\.quant_map|\.SCB|\.quant_state\..*)$"
)
"""What quantization tools store beside a weight or in its place."""
_ADAPTER = re.compile(r"lora_|\.dora_|^base_model\.")


def contents(folder: Path, spec: DecoderSpec) -> dict[str, Stored]:
    """The tensors of the checkpoint in `folder` that a decoder of this spec consumes, by name,
    without the prefix of a model of several parts.

    A quantized weight is one of them, with its scale.

    With tied embeddings, one of embedding and head is enough. If both are stored both are here, as
    transformers ties them only when they are equal.

    Raises:
        ConfigError: a file is missing or damaged; a tensor is missing, of another shape, in two
            files, quantized in a way that is not served, or one that nobody consumes.
    """
    config, family = read_config(folder), family_of(spec)
    quantisation, names = quantized.read(folder, config), family.names
    stored = scales.logical(headers.read(weight_files(folder)), quantisation)
    stored = _of_decoder(stored, names)
    stored = _without_predictors(stored, len(spec.layers), family.predictors(config))
    wanted = {f"{names.prefix}{name}": shape for name, shape in shapes(spec, names).items()}
    _refuse_quantized(folder, stored)
    _refuse_strange(folder, [n for n in stored if n not in wanted and not _HARMLESS.search(n)])
    embedding, head = f"{names.prefix}{EMBEDDING}", f"{names.prefix}{HEAD}"
    spare = {head} if embedding in stored else {embedding} if head in stored else set()
    missing = [n for n in wanted if n not in stored and not (spec.tied and n in spare)]
    if missing:
        raise ConfigError(
            f"model.path: {folder} has no tensor {_some(missing)}",
            hint="is the checkpoint whole, and config.json its own?",
        )
    for name, shape in wanted.items():
        if name in stored and stored[name].shape != shape:
            raise ConfigError(
                f"model.path: {name} in {stored[name].path} has shape {stored[name].shape}, "
                f"config.json says {shape}"
            )
    return {name.removeprefix(names.prefix): stored[name] for name in wanted if name in stored}


def _of_decoder(stored: dict[str, Stored], names: Names) -> dict[str, Stored]:
    """Without the tensors of a model's other parts."""
    kept = {name: tensor for name, tensor in stored.items() if not name.startswith(names.others)}
    if len(kept) < len(stored):
        logger.warning(
            "%d tensors of %s are not read: only the text part of the model is served",
            len(stored) - len(kept),
            ", ".join(f"{other}*" for other in names.others),
        )
    return kept


def _without_predictors(stored: dict[str, Stored], layers: int, count: int) -> dict[str, Stored]:
    """Without the tensors of `count` layers behind the model's: see Family.predictors."""
    behind = tuple(layer_name(layers + at) for at in range(count))
    kept = {name: tensor for name, tensor in stored.items() if not name.startswith(behind)}
    if len(kept) < len(stored):
        logger.info(
            "%d tensors of multi-token prediction are not computed: %s*",
            len(stored) - len(kept),
            "*, ".join(behind),
        )
    return kept


def _refuse_quantized(folder: Path, stored: Mapping[str, Stored]) -> None:
    """By dtypes and names: not every tool leaves word in a configuration."""
    narrow = [n for n, tensor in stored.items() if not tensor.scale and tensor.dtype not in _WHOLE]
    packed = [name for name in stored if _PACKED.search(name)]
    if narrow:
        kinds = sorted({stored[name].dtype for name in narrow})
        raise ConfigError(
            f"model.path: {folder} is quantized with {', '.join(kinds)}, or not a decoder's: "
            f"{_some(narrow)}. That is not served yet",
            hint=CURE,
        )
    if packed:
        raise ConfigError(
            f"model.path: {folder} is quantized with scales that nobody applies: {_some(packed)}",
            hint=CURE,
        )


def _refuse_strange(folder: Path, names: Collection[str]) -> None:
    kinds: list[tuple[str, Callable[[str], object], str]] = [
        (
            "tensors of an adapter, which is not applied",
            _ADAPTER.search,
            "merge the adapter into the model's weights",
        ),
        (
            "biases that this architecture does not add",
            lambda name: name.endswith(".bias"),
            "is config.json's `architectures` the right one?",
        ),
        (
            "tensors that nobody reads",
            lambda name: True,
            "is config.json this checkpoint's own, and are there no other files beside it?",
        ),
    ]
    for kind, belongs, hint in kinds:
        found = [name for name in names if belongs(name)]
        if found:
            raise ConfigError(f"model.path: {folder} has {kind}: {_some(found)}", hint=hint)


def _some(names: Collection[str]) -> str:
    first, *others = names
    return f"{first} and {len(others)} more" if others else first
