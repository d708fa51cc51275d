"""A model folder that a test may spoil."""

from pathlib import Path

import pytest
from model_folder import Folder


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)
