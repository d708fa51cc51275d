"""Which tensors of a quantized checkpoint are one weight together. No torch.

A weight and its scales become one logical tensor, of the plain weight's name and shape: whoever
names a model's tensors knows nothing of how they are stored.
"""

from collections.abc import Mapping
from dataclasses import replace

from pds_engine.errors import ConfigError
from pds_engine.models.headers import Block, Scale, Stored
from pds_engine.models.quantized import Kind, Quantisation, Scheme

_FP8 = "F8_E4M3"
_SCALES = frozenset({"F32", "F16", "BF16", "F8_E8M0"})
_GROUP, _BYTES = 32, 16
"""MXFP4: numbers that share a scale, and the bytes that hold them."""
_CURE = "is the checkpoint whole, and config.json its own?"


def logical(stored: Mapping[str, Stored], quantisation: Quantisation | None) -> dict[str, Stored]:
    """The checkpoint's tensors by name, each quantized weight as one `Stored` with its `scale`.

    Tensors that are not part of a quantized weight stay as they are. MXFP4 matrices of shape
    [experts, rows, columns] are given as transformers names and lays out the plain ones: [experts,
    columns, rows], without `_blocks`.

    Raises:
        ConfigError: a quantized weight has no scale, or one of another shape or dtype; a scale has
            no quantized weight; config.json says that the weight is plain, or has no scheme for it.
    """
    if quantisation is None:
        return dict(stored)
    if quantisation.method == "mxfp4":
        return _mxfp4(stored, quantisation)
    return _fp8(stored, quantisation)


def _fp8(stored: Mapping[str, Stored], quantisation: Quantisation) -> dict[str, Stored]:
    found = dict(stored)
    for name, tensor in stored.items():
        if tensor.dtype != _FP8:
            continue
        scheme = _scheme(name, tensor, quantisation)
        scale_name = next((n for n in _scale_names(name) if n in stored), None)
        if scale_name is None:
            raise ConfigError(
                f"model.path: {name} in {tensor.path} is {_FP8} and has no scale "
                f"{_scale_names(name)[0]}",
                hint=_CURE,
            )
        scale = _numbers(scale_name, stored[scale_name], quantisation)
        found[name] = replace(tensor, scale=_fitted(name, tensor, scale_name, scale, scheme))
        del found[scale_name]
        if scheme.static:
            for unread in _input_names(name):
                found.pop(unread, None)
    for name, tensor in found.items():
        weight = _scaled_by(name)
        if weight is not None and (weight in stored or not name.endswith(".scale")):
            kind = f"is {stored[weight].dtype}" if weight in stored else "is not there"
            raise ConfigError(
                f"model.path: {name} in {tensor.path} is a scale that no weight takes: {weight} "
                f"{kind}",
                hint=_CURE,
            )
    return found


def _scheme(name: str, tensor: Stored, quantisation: Quantisation) -> Scheme:
    module = name.removesuffix(".weight")
    _refuse_ignored(name, module, tensor, quantisation)
    scheme = quantisation.scheme(module)
    if scheme is None:
        raise ConfigError(
            f"model.path: {name} in {tensor.path} is {_FP8}, and config.json's "
            f"quantization_config names it in no group's targets",
            hint=_CURE,
        )
    return scheme


def _refuse_ignored(name: str, module: str, tensor: Stored, quantisation: Quantisation) -> None:
    if quantisation.ignores(module):
        raise ConfigError(
            f"model.path: {name} in {tensor.path} is {tensor.dtype}, and config.json's "
            f"quantization_config says that it is not quantized",
            hint=_CURE,
        )


def _scale_names(weight: str) -> list[str]:
    """What the scale of a weight is called: DeepSeek's and transformers', compressed-tensors'."""
    names = [f"{weight}_scale_inv", f"{weight}_scale"]
    if weight.endswith(".weight"):
        names.append(weight.removesuffix("weight") + "scale")
    return names


def _input_names(weight: str) -> list[str]:
    module = weight.removesuffix("weight") if weight.endswith(".weight") else f"{weight}_"
    return [f"{module}input_scale", f"{module}activation_scale"]


def _scaled_by(name: str) -> str | None:
    """The weight that a scale of this name belongs to; None: it is not a scale's name."""
    for end, instead in (("_scale_inv", ""), (".scale", ".weight"), ("weight_scale", "weight")):
        if name.endswith(end):
            return name.removesuffix(end) + instead
    return None


def _numbers(name: str, scale: Stored, quantisation: Quantisation) -> Stored:
    if scale.dtype == "U8" and quantisation.exponents:
        return replace(scale, dtype="F8_E8M0")
    if scale.dtype not in _SCALES:
        raise ConfigError(
            f"model.path: the scale {name} in {scale.path} is {scale.dtype}",
            hint=f"served are scales in {', '.join(sorted(_SCALES))}",
        )
    return scale


def _fitted(name: str, tensor: Stored, scale_name: str, scale: Stored, scheme: Scheme) -> Scale:
    """The scale in as many dimensions as its weight has: one number a block."""
    if len(tensor.shape) < 2 or 0 in tensor.shape:
        raise ConfigError(f"model.path: {name} in {tensor.path} is {_FP8} and no matrix")
    *lead, rows, columns = tensor.shape
    expected: list[tuple[int, ...]] = []
    for kind in scheme.kinds:
        block, shapes = _shapes(kind, scheme, rows, columns)
        whole = [(*lead, *shape) for shape in shapes]
        if scale.shape in whole:
            return Scale(replace(scale, shape=whole[0]), block)
        expected.append(whole[0])
    blocks = f", in blocks of {list(scheme.block)}" if scheme.block else ""
    raise ConfigError(
        f"model.path: the scale {scale_name} in {scale.path} has shape {scale.shape}; a weight of "
        f"shape {tensor.shape} scaled by {' or '.join(scheme.kinds)}{blocks} has one of shape "
        f"{' or '.join(map(str, expected))}",
        hint=_CURE,
    )


def _shapes(
    kind: Kind, scheme: Scheme, rows: int, columns: int
) -> tuple[Block, list[tuple[int, ...]]]:
    """What has one scale; the shapes that a matrix's scale has in files, the full one first."""
    if kind == "channel":
        return kind, [(rows, 1), (rows,)]
    if kind == "tensor" or scheme.block is None:
        return "tensor", [(1, 1), (1,), ()]
    height, width = scheme.block
    return scheme.block, [(-(-rows // height), -(-columns // width))]


def _mxfp4(stored: Mapping[str, Stored], quantisation: Quantisation) -> dict[str, Stored]:
    found = dict(stored)
    for name, blocks in stored.items():
        if not name.endswith("_blocks"):
            continue
        weight = name.removesuffix("_blocks")
        _refuse_ignored(name, weight.rpartition(".")[0], blocks, quantisation)
        scale = stored.get(f"{weight}_scales")
        if scale is None:
            raise ConfigError(
                f"model.path: {name} in {blocks.path} has no {weight}_scales", hint=_CURE
            )
        sound = blocks.dtype == "U8" and len(blocks.shape) == 4 and blocks.shape[3] == _BYTES
        if not sound or scale.dtype not in ("U8", "F8_E8M0") or scale.shape != blocks.shape[:3]:
            raise ConfigError(
                f"model.path: {name} in {blocks.path} is {blocks.dtype} of shape {blocks.shape}, "
                f"its scales are {scale.dtype} of shape {scale.shape}; MXFP4 is U8 of shape "
                f"[experts, rows, groups, {_BYTES}] and [experts, rows, groups]",
                hint=_CURE,
            )
        if weight in stored:
            raise ConfigError(
                f"model.path: {weight} is in {stored[weight].path}, and as MXFP4 in {blocks.path}",
                hint=_CURE,
            )
        experts, rows, groups = scale.shape
        del found[name], found[f"{weight}_scales"]
        found[weight] = replace(
            blocks,
            dtype="MXFP4",
            shape=(experts, groups * _GROUP, rows),
            scale=Scale(replace(scale, dtype="F8_E8M0"), (1, _GROUP)),
        )
    for name, tensor in found.items():
        if name.endswith("_scales"):
            raise ConfigError(
                f"model.path: {name} in {tensor.path} has no {name.removesuffix('scales')}blocks",
                hint=_CURE,
            )
    return found
