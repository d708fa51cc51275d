"""A checkpoint whose tensors would not all be used as they are meant is refused before a process
starts, by the name of a tensor."""

import json
import struct
from typing import Any

import pytest
import torch
from model_folder import Folder
from pds_engine import launch
from pds_engine.errors import ConfigError
from pds_engine.models.registry import family_of, read_spec
from pds_engine.models.shapes import shapes
from pds_engine.models.tensors import contents
from safetensors.torch import save_file

DOWN = "model.layers.1.mlp.down_proj"
E4M3 = torch.float8_e4m3fn
CURE = (
    "serve a checkpoint in bfloat16, float16 or float32, or one quantized with "
    "fp8, compressed-tensors (FP8) or mxfp4"
)


def in_blocks(folder: Folder, scales: str = "weight_scale_inv", block: int = 16) -> None:
    """FP8 as DeepSeek's and Qwen's have it: a scale for each block, the last one partial."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        weight = tensors[f"{DOWN}.weight"]
        rows, columns = (-(-size // block) for size in weight.shape)
        tensors[f"{DOWN}.weight"] = weight.to(E4M3)
        tensors[f"{DOWN}.{scales}"] = torch.full((rows, columns), 0.5)

    folder.change(edit)


def by_channel(folder: Folder) -> None:
    """FP8 as compressed-tensors has it: a scale a row."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        weight = tensors[f"{DOWN}.weight"]
        scale = weight.abs().amax(1, keepdim=True) / 448
        tensors[f"{DOWN}.weight"] = (weight / scale).to(E4M3)
        tensors[f"{DOWN}.weight_scale"] = scale

    folder.change(edit)


def by_tensor(folder: Folder) -> None:
    """FP8 as ModelOpt has it: one scale, and one of the inputs."""
    folder.change(
        lambda tensors: tensors.update(
            {
                f"{DOWN}.weight": tensors[f"{DOWN}.weight"].to(E4M3),
                f"{DOWN}.weight_scale": torch.tensor(0.5),
                f"{DOWN}.input_scale": torch.tensor(0.5),
            }
        )
    )


def packed(folder: Folder) -> None:
    """GPTQ's: whole numbers of 4 bits, eight in a word."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{DOWN}.weight"]
        tensors[f"{DOWN}.qweight"] = torch.zeros(3, 16, dtype=torch.int32)
        tensors[f"{DOWN}.scales"] = torch.ones(1, 16)

    folder.change(edit)


def without_scales(folder: Folder) -> None:
    folder.change(lambda t: t.update({f"{DOWN}.weight": t[f"{DOWN}.weight"].to(E4M3)}))


def whole_with_scales(folder: Folder) -> None:
    """Numbers on a grid, kept in bfloat16, that nobody multiplies with their scale."""
    folder.change(lambda tensors: tensors.update({f"{DOWN}.weight_scale": torch.ones(16, 1)}))


QUANTIZED = [in_blocks, by_channel, by_tensor, packed, without_scales, whole_with_scales]


@pytest.mark.parametrize("make", QUANTIZED, ids=lambda make: make.__name__)
def test_quantized_tensors_are_refused_without_any_configuration(folder, make):
    launch.check(folder.engine())
    make(folder)
    with pytest.raises(ConfigError, match=rf"is quantized with .*{DOWN}\.") as caught:
        launch.check(folder.engine())
    assert caught.value.hint == CURE


FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16]}
BY_ROW = {"num_bits": 8, "type": "float", "strategy": "channel"}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": BY_ROW}},
    "ignore": ["lm_head"],
}
STATIC = {"quant_method": "fp8", "weight_block_size": None, "activation_scheme": "static"}


@pytest.mark.parametrize(
    ("make", "said"), [(in_blocks, FP8), (by_channel, COMPRESSED), (by_tensor, STATIC)]
)
def test_quantized_tensors_that_config_json_explains_are_served(folder, make, said):
    make(folder)
    folder.configure(quantization_config=said)
    launch.check(folder.engine())
    found = contents(folder.path, read_spec(folder.path))
    assert found[f"{DOWN}.weight"].scale
    spec = read_spec(folder.path)
    assert set(found) == set(shapes(spec, family_of(spec).names))


@pytest.mark.parametrize(
    ("make", "said", "says"),
    [
        (in_blocks, COMPRESSED, "no weight takes|has shape"),
        (by_channel, FP8, r"the scale .*weight_scale in .* has shape \(16, 1\)"),
        (packed, FP8, rf"is quantized with I32.*{DOWN}\.qweight"),
        (without_scales, FP8, rf"{DOWN}\.weight in .* has no scale"),
        (whole_with_scales, COMPRESSED, rf"{DOWN}\.weight_scale in .* no weight takes"),
    ],
)
def test_quantized_tensors_that_config_json_explains_otherwise(folder, make, said, says):
    make(folder)
    folder.configure(quantization_config=said)
    with pytest.raises(ConfigError, match=says):
        launch.check(folder.engine())


@pytest.mark.parametrize("name", ["self_attn.k_scale", "self_attn.k_proj.output_scale"])
def test_scales_of_a_quantized_cache_are_refused(folder, name):
    folder.configure(quantization_config=FP8)
    folder.change(lambda t: t.update({f"model.layers.0.{name}": torch.ones(1)}))
    with pytest.raises(ConfigError, match=rf"scales that nobody applies: .*{name}"):
        launch.check(folder.engine())


@pytest.mark.parametrize(
    ("file", "said", "method"),
    [
        ("config.json", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ("config.json", {"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ("config.json", {"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ("config.json", {"quantization_config": {"quant_method": "fbgemm_fp8"}}, "fbgemm_fp8"),
        ("config.json", {"quantization_config": {"quant_method": "modelopt"}}, "modelopt"),
        ("config.json", {"quantization_config": {"bits": 4, "group_size": 64}}, "4 bits a weight"),
        ("config.json", {"compression_config": {"quantization_status": "frozen"}}, "frozen"),
        ("config.json", {"quantization": {"bits": 8}}, "8 bits a weight"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4"}}, "NVFP4"),
        ("quantize_config.json", {"bits": 4, "quant_method": "gptq"}, "gptq"),
        ("quant_config.json", {"w_bit": 4}, "an unnamed method"),
    ],
)
def test_a_quantized_model_is_refused_by_its_method(folder, file, said, method):
    if file == "config.json":
        folder.configure(**said)
    else:
        (folder.path / file).write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=rf"quantized with {method} \({file}") as caught:
        launch.check(folder.engine())
    assert caught.value.hint == CURE


def test_an_adapter_beside_the_model_is_refused(folder):
    (folder.path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a LoRA adapter"):
        launch.check(folder.engine())


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (f"{DOWN}.bias", "biases that this architecture does not add"),
        ("model.layers.0.self_attn.q_proj.bias", "biases that this architecture does not add"),
        ("lm_head.bias", "biases that this architecture does not add"),
        (f"{DOWN}.lora_A.weight", "tensors of an adapter"),
        (f"base_model.model.{DOWN}.weight", "tensors of an adapter"),
        ("model.layers.2.mlp.down_proj.weight", "tensors that nobody reads"),
        ("model.layers.0.post_feedforward_layernorm.weight", "tensors that nobody reads"),
        ("model.layers.0.self_attn.sinks", "tensors that nobody reads"),
    ],
)
def test_tensors_that_nobody_consumes_are_named(folder, extra, says):
    folder.change(lambda tensors: tensors.update({extra: torch.ones(16)}))
    with pytest.raises(ConfigError, match=rf"{says}.*: {extra}") as caught:
        launch.check(folder.engine())
    assert caught.value.hint


def test_leftovers_that_change_nothing_are_ignored(folder):
    left = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder.change(lambda tensors: tensors.update({left: torch.ones(4)}))
    launch.check(folder.engine())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_floating_point_of_full_width_is_served(folder, dtype):
    folder.change(lambda tensors: tensors.update({n: t.to(dtype) for n, t in tensors.items()}))
    launch.check(folder.engine())


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda t: t.pop("model.norm.weight"), r"has no tensor model\.norm\.weight"),
        (lambda t: t.pop("lm_head.weight"), r"has no tensor lm_head\.weight"),
        (
            lambda t: [t.pop(name) for name in list(t) if ".1." in name],
            r"has no tensor model\.layers\.1\.\S+ and 10 more",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(17)}),
            r"model\.norm\.weight in .* has shape \(17,\), config.json says \(16,\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(16, dtype=torch.int32)}),
            r"I32, or not a decoder's: model\.norm\.weight",
        ),
    ],
)
def test_wrong_tensors_are_named(folder, edit, says):
    folder.change(edit)
    with pytest.raises(ConfigError, match=says):
        launch.check(folder.engine())


def test_a_tensor_in_two_files_is_named(folder):
    halves = {"a.safetensors": folder.tensors(), "b.safetensors": {"lm_head.weight": torch.ones(1)}}
    folder.weights.unlink()
    for name, tensors in halves.items():
        save_file(tensors, folder.path / name)
    with pytest.raises(ConfigError, match=r"lm_head\.weight is in .*a\.safetensors and in .*b\."):
        launch.check(folder.engine())


def test_a_file_beside_the_whole_one_is_not_read(folder):
    """As in transformers: original/consolidated files lie beside the model's own."""
    save_file({"wq.weight": torch.ones(1)}, folder.path / "consolidated.safetensors")
    launch.check(folder.engine())


def header(entries: Any, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        header(b"{"),
        header(b"[" * 100_000),
        header([]),
        header({"a": 1}),
        header({"a": {**GOOD, "shape": [-1]}}, b"0000"),
        header({"a": {**GOOD, "shape": [2]}}, b"0000"),
        header({"a": {**GOOD, "shape": ["1"]}}, b"0000"),
        header({"a": {**GOOD, "shape": 1}}, b"0000"),
        header({"a": {**GOOD, "dtype": ["F32"]}}, b"0000"),
        header({"a": {**GOOD, "data_offsets": [4, 0]}}, b"0000"),
        header({"a": {**GOOD, "data_offsets": [0]}}, b"0000"),
        header({"a": GOOD}, b"000"),
        header({"a": GOOD}, b"00000"),
    ],
)
def test_a_damaged_file_is_named(folder, content):
    folder.weights.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read .*model\.safetensors: "):
        launch.check(folder.engine())


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM"])
def test_a_family_consumes_what_its_checkpoints_have(folder, architecture):
    folder.become(architecture)
    launch.check(folder.engine())
    stored = {name: tuple(tensor.shape) for name, tensor in folder.tensors().items()}
    spec = read_spec(folder.path)
    assert shapes(spec, family_of(spec).names) == stored


def of_several_parts(tensors: dict[str, torch.Tensor]) -> None:
    plain = dict(tensors)
    tensors.clear()
    tensors |= {f"language_model.{name}": tensor for name, tensor in plain.items()}
    tensors["vision_tower.head.probe"] = torch.ones(1)


@pytest.fixture
def several_parts(folder):
    """A model that sees images, too: its text part has another configuration and other names."""
    folder.become("Gemma3ForCausalLM")
    config = json.loads((folder.path / "config.json").read_text())
    del config["architectures"], config["hidden_act"], config["rope_theta"]
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"}
    folder.path.joinpath("config.json").write_text(json.dumps(whole | {"text_config": config}))

    def add_norms(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(2):
            for place in ("pre_feedforward", "post_feedforward"):
                tensors[f"model.layers.{layer}.{place}_layernorm.weight"] = torch.ones(16)
            for letter in "qk":
                tensors[f"model.layers.{layer}.self_attn.{letter}_norm.weight"] = torch.ones(8)

    folder.change(add_norms)
    folder.change(of_several_parts)
    return folder


def test_the_text_part_of_a_model_is_read_and_the_others_are_named(several_parts, caplog):
    launch.check(several_parts.engine())
    found = contents(several_parts.path, read_spec(several_parts.path))
    assert "model.norm.weight" in found
    assert not any("vision" in name or "language_model" in name for name in found)
    assert "1 tensors of vision_tower.*, multi_modal_projector.* are not read" in caplog.text


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda t: t.pop("language_model.model.norm.weight"),
            r"has no tensor language_model\.model\.norm\.weight",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(16)}),
            r"tensors that nobody reads: model\.norm\.weight",
        ),
        (
            lambda t: t.update({"audio_tower.weight": torch.ones(16)}),
            r"tensors that nobody reads: audio_tower\.weight",
        ),
    ],
)
def test_wrong_tensors_of_a_part_are_named(several_parts, edit, says):
    several_parts.change(edit)
    with pytest.raises(ConfigError, match=says):
        launch.check(several_parts.engine())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "text_config must be an object, got None"),
        ({"model_type": "gemma2"}, "text_config.model_type 'gemma2' is not that of"),
        ({"logit_scale": 2.0}, "logit_scale 2.0 is not known"),
    ],
)
def test_the_configuration_of_a_part_is_checked(several_parts, text, says):
    path = several_parts.path / "config.json"
    config = json.loads(path.read_text())
    merged = text if text is None else config["text_config"] | text
    path.write_text(json.dumps(config | {"text_config": merged}))
    with pytest.raises(ConfigError, match=says):
        read_spec(several_parts.path)
