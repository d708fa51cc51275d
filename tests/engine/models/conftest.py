"""A model folder that a test may spoil."""

from collections.abc import Iterator
from pathlib import Path

import cpu_libraries
import pytest
from model_folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    """Weights are in no kernel's order."""
    with cpu_libraries.without():
        yield
