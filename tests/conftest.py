"""Where no GPU is, tests marked gpu are skipped, and Triton's kernels are interpreted."""

import os

import pytest
import torch

GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton must know before it is imported


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if not GPU else ():
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU and its driver"))
