"""Which tensors are one weight, and which only look like it: these are refused by name."""

from pathlib import Path
from typing import Any

import pytest
from pds_engine.errors import ConfigError
from pds_engine.models import quantized
from pds_engine.models.headers import Scale, Stored
from pds_engine.models.scales import logical

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
TENSOR = FP8 | {"weight_block_size": None}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "ignore": ["lm_head"],
    "config_groups": {
        "attention": {
            "targets": ["re:.*self_attn"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
        }
    },
}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.layers.*.router"]}


def tensor(dtype: str, *shape: int, begin: int = 0) -> Stored:
    return Stored(Path("model.safetensors"), dtype, shape, begin)


def found(said: Any, **stored: Stored) -> dict[str, Stored]:
    names = {name.replace("__", "."): one for name, one in stored.items()}
    return logical(names, quantized.read(Path("/nowhere"), {"quantization_config": said}))


def weight(*shape: int) -> Stored:
    return tensor("F8_E4M3", *shape)


def test_a_plain_checkpoint_stays_as_it_is():
    stored = {"a.weight": tensor("BF16", 3, 4), "a.weight_scale": tensor("F32")}
    assert logical(stored, None) == stored


def test_a_weight_takes_its_scale_and_the_rest_stays():
    plain, scale = tensor("BF16", 7), tensor("F32", 5, 8, begin=9)
    # 576 rows and 1,000 columns in blocks of 128: the last ones are cut short
    assert found(FP8, a__weight=weight(576, 1000), a__weight_scale_inv=scale, a__bias=plain) == {
        "a.weight": Stored(
            Path("model.safetensors"), "F8_E4M3", (576, 1000), 0, Scale(scale, (128, 128))
        ),
        "a.bias": plain,
    }


@pytest.mark.parametrize("name", ["a__weight_scale_inv", "a__weight_scale", "a__scale"])
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16", "F8_E8M0"])
def test_what_scales_are_called_and_stored_in(name, dtype):
    one = found(FP8, a__weight=weight(128, 129), **{name: tensor(dtype, 1, 2)})["a.weight"]
    assert one.scale == Scale(tensor(dtype, 1, 2), (128, 128))


@pytest.mark.parametrize("name", ["gate_up_proj_scale_inv", "gate_up_proj_scale"])
def test_experts_in_one_tensor_have_scales_in_one(name):
    stored = {"gate_up_proj": weight(3, 200, 128), name: tensor("F32", 3, 2, 1)}
    assert found(FP8, **stored)["gate_up_proj"].scale == Scale(tensor("F32", 3, 2, 1), (128, 128))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_scale_for_the_whole_is_one_number(shape):
    one = found(TENSOR, a__weight=weight(5, 7), a__weight_scale=tensor("F32", *shape))["a.weight"]
    assert one.scale == Scale(tensor("F32", 1, 1), "tensor")


@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_a_scale_for_each_row_is_a_column(shape):
    name = "model.layers.0.self_attn.q_proj.weight"
    stored = {name: weight(5, 7), f"{name}_scale": tensor("BF16", *shape)}
    one = found(COMPRESSED, **stored)[name]
    assert one.scale == Scale(tensor("BF16", 5, 1), "channel")


def test_bytes_are_exponents_where_config_json_says_so():
    stored = {"a.weight": weight(128, 128), "a.weight_scale_inv": tensor("U8", 1, 1)}
    one = found(FP8 | {"scale_fmt": "ue8m0"}, **stored)["a.weight"]
    assert one.scale == Scale(tensor("F8_E8M0", 1, 1), (128, 128))
    with pytest.raises(ConfigError, match=r"the scale a\.weight_scale_inv in .* is U8"):
        found(FP8, **stored)


@pytest.mark.parametrize("name", ["a.input_scale", "a.activation_scale"])
def test_scales_of_inputs_are_for_activations_and_left_unread(name):
    stored = {"a.weight": weight(5, 7), "a.weight_scale": tensor("F32"), name: tensor("F32")}
    assert set(found(TENSOR | {"activation_scheme": "static"}, **stored)) == {"a.weight"}
    # where config.json speaks of none they stay, for `contents` to refuse
    assert name in found(TENSOR, **stored)
    stored["a.weight"] = tensor("BF16", 5, 7)
    del stored["a.weight_scale"]
    assert name in found(TENSOR | {"activation_scheme": "static"}, **stored)


PROJ = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("said", "stored", "says"),
    [
        (
            FP8,
            {"a.weight": weight(4, 4)},
            r"a\.weight in .* is F8_E4M3 and has no scale a\.weight_scale_inv",
        ),
        (
            FP8,
            {"a.weight": weight(256, 128), "a.weight_scale_inv": tensor("F32", 1, 1)},
            r"a\.weight_scale_inv in .* has shape \(1, 1\); a weight of shape \(256, 128\) scaled "
            r"by block, in blocks of \[128, 128\] has one of shape \(2, 1\)",
        ),
        (
            # 576 rows divide into 9 blocks of 64: what shapes say is not what config.json says
            FP8,
            {"a.weight": weight(576, 128), "a.weight_scale_inv": tensor("F32", 9, 1)},
            r"has one of shape \(5, 1\)",
        ),
        (
            {"quant_method": "fp8"},
            {"a.weight": weight(256, 128), "a.weight_scale": tensor("F32", 256, 1)},
            r"scaled by block or tensor, .* has one of shape \(2, 1\) or \(1, 1\)",
        ),
        (
            TENSOR,
            {"a.weight": weight(3, 4, 4), "a.weight_scale": tensor("F32")},
            r"a weight of shape \(3, 4, 4\) scaled by tensor has one of shape \(3, 1, 1\)",
        ),
        (
            FP8,
            {"a.weight": weight(4), "a.weight_scale_inv": tensor("F32", 1)},
            r"a\.weight in .* is F8_E4M3 and no matrix",
        ),
        (
            FP8,
            {"a.weight": weight(4, 4), "a.weight_scale_inv": tensor("I32", 1, 1)},
            r"the scale a\.weight_scale_inv in .* is I32",
        ),
        (
            FP8,
            {"a.weight": tensor("BF16", 4, 4), "a.weight_scale_inv": tensor("F32", 1, 1)},
            r"a\.weight_scale_inv in .* no weight takes: a\.weight is BF16",
        ),
        (
            FP8,
            {"a.weight": tensor("BF16", 4, 4), "a.scale": tensor("F32", 1, 1)},
            r"a\.scale in .* no weight takes: a\.weight is BF16",
        ),
        (FP8, {"a.weight_scale": tensor("F32")}, r"no weight takes: a\.weight is not there"),
        (
            FP8,
            {
                "a.weight": weight(4, 4),
                "a.weight_scale_inv": tensor("F32", 1, 1),
                "a.weight_scale": tensor("F32", 1, 1),
            },
            r"a\.weight_scale in .* no weight takes: a\.weight is F8_E4M3",
        ),
        (
            FP8 | {"modules_to_not_convert": ["a"]},
            {"a.weight": weight(4, 4), "a.weight_scale_inv": tensor("F32", 1, 1)},
            r"a\.weight in .* is F8_E4M3, and config\.json's .* says that it is not quantized",
        ),
        (
            COMPRESSED,
            {f"{PROJ}.weight": weight(4, 4), f"{PROJ}.weight_scale": tensor("F32", 4, 1)},
            r"up_proj\.weight in .* is F8_E4M3, and .* names it in no group's targets",
        ),
    ],
)
def test_fp8_that_does_not_fit(said, stored, says):
    with pytest.raises(ConfigError, match=says):
        found(said, **stored)


def test_a_tensor_called_scale_that_is_of_no_weight_is_nobody_s_scale():
    stored = {"model.norm.scale": tensor("F32", 4)}
    assert found(FP8, **stored) == stored


BLOCKS, SCALES = tensor("U8", 4, 6, 3, 16, begin=5), tensor("U8", 4, 6, 3, begin=7)


def test_mxfp4_is_one_weight_as_transformers_lays_it_out():
    stored = {"e.w_blocks": BLOCKS, "e.w_scales": SCALES, "e.w_bias": tensor("BF16", 4, 6)}
    scale = Scale(tensor("F8_E8M0", 4, 6, 3, begin=7), (1, 32))
    assert found(MXFP4, **stored) == {
        "e.w": Stored(Path("model.safetensors"), "MXFP4", (4, 96, 6), 5, scale),
        "e.w_bias": tensor("BF16", 4, 6),
    }


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        ({"e.w_blocks": BLOCKS}, r"e\.w_blocks in .* has no e\.w_scales"),
        ({"e.w_scales": SCALES}, r"e\.w_scales in .* has no e\.w_blocks"),
        (
            {"e.w_blocks": tensor("U8", 4, 6, 3, 8), "e.w_scales": SCALES},
            r"e\.w_blocks in .* is U8 of shape \(4, 6, 3, 8\), its scales are U8 of shape \(4",
        ),
        ({"e.w_blocks": tensor("U8", 4, 6, 48), "e.w_scales": SCALES}, "MXFP4 is U8 of shape"),
        ({"e.w_blocks": tensor("I8", 4, 6, 3, 16), "e.w_scales": SCALES}, "MXFP4 is U8 of shape"),
        ({"e.w_blocks": BLOCKS, "e.w_scales": tensor("U8", 4, 6, 2)}, "MXFP4 is U8 of shape"),
        ({"e.w_blocks": BLOCKS, "e.w_scales": tensor("F32", 4, 6, 3)}, "MXFP4 is U8 of shape"),
        (
            {"e.w_blocks": BLOCKS, "e.w_scales": SCALES, "e.w": tensor("BF16", 4, 96, 6)},
            r"e\.w is in .*, and as MXFP4 in",
        ),
        (
            {"model.layers.3.router.w_blocks": BLOCKS, "model.layers.3.router.w_scales": SCALES},
            r"router\.w_blocks in .* is U8, and .* says that it is not quantized",
        ),
    ],
)
def test_mxfp4_that_does_not_fit(stored, says):
    with pytest.raises(ConfigError, match=says):
        found(MXFP4, **stored)
