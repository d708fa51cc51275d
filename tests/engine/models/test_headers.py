"""A weight file's header says where each byte belongs, or the file is damaged."""

from pathlib import Path

import pytest
from pds_engine.errors import ConfigError
from pds_engine.models import headers


def entry(name: str, begin: int, end: int) -> str:
    return f'"{name}": {{"dtype": "F32", "shape": [4], "data_offsets": [{begin}, {end}]}}'


def written(folder: Path, *entries: str, data: int) -> Path:
    header = f"{{{', '.join(entries)}}}".encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(data))
    return path


def test_tensors_may_be_listed_in_any_order(tmp_path):
    path = written(tmp_path, entry("b", 16, 32), entry("a", 0, 16), data=32)
    found = headers.read([path])
    assert found["b"].begin - found["a"].begin == 16


@pytest.mark.parametrize(
    ("entries", "data"),
    [
        ([entry("a", 0, 16), entry("b", 0, 16)], 16),
        ([entry("a", 0, 16), entry("b", 8, 24)], 24),
        ([entry("a", 16, 32)], 32),
        ([entry("a", 0, 16), entry("b", 20, 36)], 36),
        ([entry("a", 0, 16), entry("a", 16, 32)], 32),
    ],
    ids=["the same bytes", "an overlap", "a late start", "a gap", "two tensors of one name"],
)
def test_bytes_that_two_tensors_have_or_none(tmp_path, entries, data):
    path = written(tmp_path, *entries, data=data)
    with pytest.raises(ConfigError, match="its tensors overlap, or there are bytes between them"):
        headers.read([path])
