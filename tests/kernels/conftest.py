"""Helpers of the tests of kernels are beside this file; tests have no packages."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from ahead import Compile, compiled


@pytest.fixture(scope="session")
def hopper() -> Compile:
    """Compiles launches for sm_90, in a process of its own."""
    return compiled


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Memory that nobody has written is NaN (torch.utils.deterministic)."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS refuses without
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
