"""A bad file system for other processes: bad_fs.c, compiled here and preloaded there."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

FAULTS = ("negative", "late", "exists", "busy", "stale open", "stale read")
"""As `enum fault` of bad_fs.c has them."""


def preloadable(folder: Path) -> Path:
    """The library."""
    library, source = folder / "bad_fs.so", Path(__file__).with_name("bad_fs.c")
    words = ["gcc", "-O2", "-Wall", "-shared", "-fPIC", "-o", library, source]
    subprocess.run([*words, "-ldl", "-lpthread"], check=True)
    return library


class BadFiles:
    """Everything below `folder` behaves badly for processes with the environment `env`."""

    def __init__(self, folder: Path, library: Path, seed: int, ms: int = 50) -> None:
        self._counts = folder.with_name("faults")
        self._counts.write_bytes(bytes(8 * len(FAULTS)))
        folder.mkdir(exist_ok=True)
        self.env = {
            **{name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
            "LD_PRELOAD": str(library),
            "PDS_BAD_FS": str(folder.resolve()),
            "PDS_BAD_FS_COUNTS": str(self._counts),
            "PDS_BAD_FS_SEED": str(seed),
            "PDS_BAD_FS_MS": str(ms),
        }

    def faults(self) -> Mapping[str, int]:
        """How many there were of each kind."""
        content = self._counts.read_bytes()
        found = [int.from_bytes(content[at : at + 8], "little") for at in range(0, len(content), 8)]
        return dict(zip(FAULTS, found, strict=True))
