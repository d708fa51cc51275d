"""What is wrong with weight files is reported before anything starts, by the file's name."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pds_engine import launch
from pds_engine.errors import ConfigError
from pds_engine.models.files import weight_files

STRANGER = 65532


@contextmanager
def stranger() -> Iterator[None]:
    """Nobody's rights but those for all: root reads whatever the mode says."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(STRANGER)
    try:
        yield
    finally:
        os.seteuid(own)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that a stranger may look into, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_file_that_may_not_be_read_is_named_with_the_cure(open_folder, name):
    path = open_folder / name
    path.write_bytes(b"")
    path.chmod(0o200)
    with stranger(), pytest.raises(ConfigError, match=r"cannot read .*Permission denied") as caught:
        weight_files(open_folder)
    assert str(path) in caught.value.message
    assert "65532" in caught.value.hint


@pytest.mark.parametrize("index", ["[]", '{"weight_map": []}', "{", "[" * 100_000])
def test_an_index_that_is_none(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigError, match="is not a safetensors index"):
        weight_files(tmp_path)


@pytest.mark.parametrize("name", ["../a.safetensors", "x/../../a.safetensors", "/a.safetensors"])
def test_an_index_names_no_file_elsewhere(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ConfigError, match=r"names .*a\.safetensors, which is outside"):
        weight_files(tmp_path)


def test_launch_asks_before_it_starts_anything(folder):
    launch.check(folder.engine())
    folder.weights.unlink()
    with pytest.raises(ConfigError, match=r"missing .*model\.safetensors"):
        launch.check(folder.engine())


def test_launch_imports_no_torch():
    code = "import sys, pds_engine.launch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
