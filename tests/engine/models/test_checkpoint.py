"""Parts of tensors, plain and quantized: exactly what transformers, or the definition, gives."""

import json
import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pds_engine.errors import ConfigError
from pds_engine.models import headers, quantized, scales
from pds_engine.models.checkpoint import Checkpoint
from safetensors.torch import save_file
from stored_weights import E4M3, E8M0, fp8, mxfp4, plain
from stored_weights import scales as numbers
from torch import Tensor

FP8 = {"quant_method": "fp8", "weight_block_size": [4, 8], "scale_fmt": "ue8m0"}
PARTS = [
    (range(5), range(7), range(11)),
    (range(2, 4), range(3, 7), range(1, 10)),
    (range(4, 5), range(6, 7), range(10, 11)),
    (range(3), range(2, 2), range(11)),
]


def checkpoint(folder: Path, tensors: dict[str, Tensor], said: Any = None) -> Checkpoint:
    path = folder / "model.safetensors"
    save_file(tensors, path)
    quantisation = quantized.read(folder, {"quantization_config": said})
    return Checkpoint(scales.logical(headers.read([path]), quantisation))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("parts", PARTS)
def test_ranges_of_all_dimensions_in_one_read(tmp_path, dtype, parts):
    whole = torch.randn(5, 7, 11).to(dtype)
    with checkpoint(tmp_path, {"before": torch.ones(3), "a": whole}) as opened:
        found = opened.read("a", torch.float32, *parts)
        expected = whole.float()[tuple(slice(p.start, p.stop) for p in parts)]
        assert torch.equal(found, expected)
        assert found.is_contiguous()
        assert found.untyped_storage().nbytes() == found.numel() * 4
        for count in range(3):
            cut = tuple(slice(p.start, p.stop) for p in parts[:count])
            assert torch.equal(opened.read("a", dtype, *parts[:count]), whole[cut])
        assert torch.equal(opened.read("a", dtype, None, parts[1]), whole[:, cut_of(parts[1])])


def cut_of(part: range) -> slice:
    return slice(part.start, part.stop)


def test_a_number_and_a_tensor_without_numbers(tmp_path):
    with checkpoint(tmp_path, {"one": torch.tensor(3.5), "none": torch.empty(0, 4)}) as opened:
        assert opened.read("one", torch.bfloat16).item() == 3.5
        assert opened.read("none", torch.float32).shape == (0, 4)
        assert "one" in opened
        assert "two" not in opened


def test_what_was_read_is_no_view_of_the_file(tmp_path):
    with checkpoint(tmp_path, {"a": torch.ones(4, 4)}) as opened:
        found = opened.read("a", torch.float32)
        opened.read("a", torch.float32).fill_(7)
        assert torch.equal(opened.read("a", torch.float32), torch.ones(4, 4))
        (tmp_path / "model.safetensors").write_bytes(b"")
        assert torch.equal(found, torch.ones(4, 4))
        with pytest.raises(ConfigError, match="has become shorter since it was opened"):
            opened.read("a", torch.float32)


@pytest.mark.parametrize("shift", range(4))
def test_a_tensor_may_begin_at_any_byte(tmp_path, shift):
    """safetensors' own writer aligns them; the format does not ask for it."""
    whole, path = torch.randn(3, 5), tmp_path / "model.safetensors"
    entries = {
        "pad": {"dtype": "U8", "shape": [shift], "data_offsets": [0, shift]},
        "a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [shift, shift + 60]},
    }
    header = json.dumps(entries).encode()
    data = bytes(shift) + whole.numpy().tobytes()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    with Checkpoint(headers.read([path])) as opened:
        assert torch.equal(opened.read("a", torch.float32), whole)
        assert torch.equal(opened.read("a", torch.float32, None, range(1, 4)), whole[:, 1:4])


@pytest.mark.parametrize("part", [range(6), range(0, 4, 2), range(-1, 2), range(6, 6)])
def test_a_range_that_is_not_of_the_tensor(tmp_path, part):
    with (
        checkpoint(tmp_path, {"a": torch.ones(5)}) as opened,
        pytest.raises(ValueError, match="of a, which has shape"),
    ):
        opened.read("a", torch.float32, part)


def test_a_file_that_is_gone_when_it_is_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(1)}, path)
    found = headers.read([path])
    path.unlink()
    with pytest.raises(ConfigError, match=r"cannot read .*model\.safetensors"):
        Checkpoint(found)


CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], str, Tensor, tuple[int, int]]] = {
    "blocks": (FP8, (8, 16), "w.weight_scale_inv", numbers(2, 2), (4, 8)),
    "odd blocks": (FP8, (9, 19), "w.weight_scale_inv", numbers(3, 3), (4, 8)),
    "one block": (FP8, (3, 5), "w.weight_scale_inv", numbers(1, 1), (4, 8)),
    "bfloat16": (FP8, (9, 19), "w.weight_scale", numbers(3, 3, dtype=torch.bfloat16), (4, 8)),
    "e8m0": (FP8, (9, 19), "w.scale", numbers(3, 3, dtype=E8M0), (4, 8)),
    "bytes": (FP8, (9, 19), "w.weight_scale_inv", numbers(3, 3, dtype=E8M0), (4, 8)),
    "experts": (FP8, (3, 9, 19), "w.weight_scale_inv", numbers(3, 3, 3), (4, 8)),
    "expert scalars": (
        FP8 | {"weight_block_size": None}, (3, 9, 19), "w.weight_scale_inv", numbers(3), (9, 19)
    ),
    "channels": ({}, (9, 19), "w.weight_scale", numbers(9, 1), (1, 19)),
    "rows of scales": ({}, (9, 19), "w.weight_scale", numbers(9), (1, 19)),
    "half channels": ({}, (9, 19), "w.weight_scale", numbers(9, 1, dtype=torch.half), (1, 19)),
    "a scalar": ({"strategy": "tensor"}, (9, 19), "w.weight_scale", numbers(), (9, 19)),
    "one scale": ({"strategy": "tensor"}, (9, 19), "w.weight_scale", numbers(1), (9, 19)),
    "default, blocks": (
        {"quant_method": "fp8"}, (130, 7), "w.weight_scale_inv", numbers(2, 1), (128, 128)
    ),
    "default, a scalar": ({"quant_method": "fp8"}, (130, 7), "w.weight_scale", numbers(), (130, 7)),
}  # fmt: skip
"""config.json's words, or of compressed-tensors' weights; a weight's shape; its scale's name and
numbers; the blocks that these stand for."""


def case(name: str) -> tuple[dict[str, Any], Tensor, Tensor, dict[str, Tensor]]:
    """config.json's words, the stored weight, the plain one, and all stored tensors."""
    said, shape, scale_name, scale, block = CASES[name]
    if "quant_method" not in said:
        weights = {"num_bits": 8, "type": "float", "strategy": "channel"} | said
        said = {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": {"all": {"targets": ["Linear"], "weights": weights}},
        }
    weight = fp8(*shape)
    blocks = [-(-size // length) for size, length in zip(shape[-2:], block, strict=True)]
    expected = plain(weight, scale.float().reshape(*shape[:-2], *blocks), block)
    stored = scale.view(torch.uint8) if name == "bytes" else scale
    return said, weight, expected, {"w.weight": weight, scale_name: stored}


@pytest.mark.parametrize("name", CASES)
def test_fp8_is_its_numbers_times_their_scales(tmp_path, name):
    said, weight, expected, stored = case(name)
    with checkpoint(tmp_path, stored, said) as opened:
        assert torch.equal(opened.read("w.weight", torch.float32), expected)
        rounded = opened.read("w.weight", torch.bfloat16)
        assert torch.equal(rounded, expected.bfloat16())
        assert rounded.is_contiguous()
        *lead, rows, columns = weight.shape
        for start in range(rows):
            for stop in {start, start + 1, min(start + 4, rows), rows}:
                part = [*map(range, lead), range(start, stop)]
                found = opened.read("w.weight", torch.float32, *part)
                assert torch.equal(found, expected[..., start:stop, :]), part
        for start in range(0, columns, 3):
            for stop in {start, start + 1, min(start + 8, columns), columns}:
                part = [*map(range, lead), range(1, rows), range(start, stop)]
                found = opened.read("w.weight", torch.float32, *part)
                assert torch.equal(found, expected[..., 1:, start:stop]), part
        if lead:
            found = opened.read("w.weight", torch.float32, range(1, 3), range(2, 9), range(3, 4))
            assert torch.equal(found, expected[1:3, 2:9, 3:4])


@pytest.mark.parametrize("name", ["blocks", "one block", "e8m0", "channels", "a scalar"])
def test_fp8_as_transformers_dequantizes_it(tmp_path, name):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    said, weight, _, stored = case(name)
    if name == "e8m0":  # transformers derives blocks from shapes: they must divide
        weight = fp8(8, 24)
        stored["w.weight"] = weight
        stored["w.scale"] = stored["w.scale"][:2]
    (scale,) = (tensor for kind, tensor in stored.items() if kind != "w.weight")
    for dtype in (torch.float32, torch.bfloat16):
        expected = Fp8Dequantize(None)._dequantize_one(weight, scale, dtype)
        with checkpoint(tmp_path, stored, said) as opened:
            assert torch.equal(opened.read("w.weight", dtype), expected)


WHOLE = None
KEPT: list[tuple[str, range | None, range | None]] = [
    ("blocks", WHOLE, WHOLE),
    ("blocks", range(4), range(8, 16)),
    ("odd blocks", range(4, 8), WHOLE),
    ("odd blocks", range(8, 9), range(16, 19)),
    ("one block", range(1, 3), WHOLE),
    ("e8m0", range(4, 9), range(8)),
    ("experts", range(4, 9), range(16, 19)),
    ("channels", range(3, 5), range(2, 7)),
    ("a scalar", range(3, 5), range(2, 7)),
    ("default, blocks", range(128, 130), range(1, 3)),
]
CUT: list[tuple[str, range | None, range | None]] = [
    ("blocks", range(2), WHOLE),
    ("blocks", range(2, 4), WHOLE),
    ("odd blocks", range(8), range(17)),
    ("odd blocks", WHOLE, range(17, 19)),
    ("experts", range(1, 9), WHOLE),
    ("default, blocks", range(64), WHOLE),
]


@pytest.mark.parametrize(("name", "rows", "columns"), KEPT)
def test_fp8_that_is_kept_has_the_scales_of_its_numbers(tmp_path, name, rows, columns):
    said, weight, expected, stored = case(name)
    lead = [range(1, 3)] if weight.ndim == 3 else []
    parts = [*lead, rows, columns]
    with checkpoint(tmp_path, stored, said) as opened:
        found = opened.read_fp8("w.weight", *parts)
    block = CASES[name][4]
    named = {"channels": "channel", "a scalar": "tensor"}.get(name, block)
    assert (found.weight.dtype, found.block) == (E4M3, named)
    cut = tuple(slice(None) if p is None else slice(p.start, p.stop) for p in parts)
    assert torch.equal(plain(found.weight, found.scale, block), expected[cut])


@pytest.mark.parametrize(("name", "rows", "columns"), CUT)
def test_fp8_is_not_kept_where_a_block_is_cut(tmp_path, name, rows, columns):
    said, weight, _, stored = case(name)
    lead = [WHOLE] if weight.ndim == 3 else []
    with checkpoint(tmp_path, stored, said) as opened:
        assert opened.read_fp8("w.weight", *lead, rows, columns) is None


def test_plain_weights_are_not_kept_in_fp8(tmp_path):
    with checkpoint(tmp_path, {"w.weight": torch.ones(4, 4)}) as opened:
        assert opened.read_fp8("w.weight") is None


@pytest.mark.parametrize("spoilt", ["weight", "scale"])
def test_fp8_that_is_no_number_is_refused(tmp_path, spoilt):
    said, weight, _, stored = case("blocks")
    if spoilt == "weight":
        weight.view(torch.uint8)[7, 3] = 0xFF
    else:
        stored["w.weight_scale_inv"][1, 0] = float("inf")
    with checkpoint(tmp_path, stored, said) as opened:
        for read in (
            partial(opened.read, "w.weight", torch.float32),
            partial(opened.read_fp8, "w.weight"),
        ):
            with pytest.raises(ConfigError, match=r"w\.weight in .* no finite numbers"):
                read()
            assert read(range(4)) is not None


def test_fp8_times_its_scale_may_be_too_large(tmp_path):
    said, _, _, stored = case("blocks")
    stored["w.weight_scale_inv"].fill_(1000)
    with checkpoint(tmp_path, stored, said) as opened:
        opened.read("w.weight", torch.bfloat16)
        with pytest.raises(ConfigError, match=r"w\.weight .* too large for torch\.float16"):
            opened.read("w.weight", torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_is_what_transformers_makes_of_it(tmp_path, dtype):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, exponents = mxfp4(4, 6, 3)
    whole = convert_moe_packed_tensors(blocks, exponents, dtype=dtype)
    assert whole.shape == (4, 96, 6)
    stored = {"e.down_proj_blocks": blocks, "e.down_proj_scales": exponents}
    with checkpoint(tmp_path, stored, {"quant_method": "mxfp4"}) as opened:
        assert torch.equal(opened.read("e.down_proj", dtype), whole)
        for first in (0, 31, 32, 40, 95):
            for last in (first, first + 1, 64, 96):
                part = range(first, max(first, last))
                found = opened.read("e.down_proj", dtype, range(1, 3), part, range(2, 5))
                assert torch.equal(found, whole[1:3, part.start : part.stop, 2:5]), part
        assert opened.read_fp8("e.down_proj") is None


def test_mxfp4_by_hand(tmp_path):
    """The lower half of a byte is the first number: 0x2A is -1, 1; exponent 128 doubles."""
    blocks = torch.full((1, 1, 1, 16), 0x2A, dtype=torch.uint8)
    stored = {"e.w_blocks": blocks, "e.w_scales": torch.full((1, 1, 1), 128, dtype=torch.uint8)}
    with checkpoint(tmp_path, stored, {"quant_method": "mxfp4"}) as opened:
        assert opened.read("e.w", torch.float32).flatten().tolist() == [-2.0, 2.0] * 16


def test_mxfp4_of_no_scale_is_refused(tmp_path):
    blocks, exponents = mxfp4(2, 2, 2)
    exponents[1, 1, 1] = 0xFF
    stored = {"e.w_blocks": blocks, "e.w_scales": exponents}
    with checkpoint(tmp_path, stored, {"quant_method": "mxfp4"}) as opened:
        opened.read("e.w", torch.float32, range(1))
        with pytest.raises(ConfigError, match=r"e\.w in .* no finite numbers"):
            opened.read("e.w", torch.float32, range(1, 2))
