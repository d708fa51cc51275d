"""Models in FP8 for tests: linear layers of a saved one, with a scale for each block."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_LINEAR = re.compile(r"_proj(_with_mqa)?\.weight$")


def quantise(folder: Path, block: tuple[int, int]) -> None:
    """Make the model in `folder` one in FP8, as DeepSeek's are."""
    path, stored = folder / "model.safetensors", dict[str, Tensor]()
    for name, tensor in load_file(path).items():
        if _LINEAR.search(name):
            stored[name], stored[f"{name}_scale_inv"] = by_blocks(tensor, block)
        else:
            stored[name] = tensor
    save_file(stored, path, metadata={"format": "pt"})
    file = folder / "config.json"
    said = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": list(block)}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": said}))


def by_blocks(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Its numbers in FP8, and each block's scale: the greatest number becomes 448."""
    (rows, columns), (high, wide) = weight.shape, block
    down, across = -(-rows // high), -(-columns // wide)
    padded = torch.zeros(down * high, across * wide)
    padded[:rows, :columns] = weight
    blocks = padded.view(down, high, across, wide)
    scale = blocks.abs().amax((1, 3)) / 448
    numbers = blocks / scale[:, None, :, None]
    whole = numbers.reshape(padded.shape)[:rows, :columns]
    return whole.to(torch.float8_e4m3fn).contiguous(), scale
