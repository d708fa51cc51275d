"""Where the tests that run compiled graphs keep them: a graph takes 20 s of a core."""

import hashlib
import os
from pathlib import Path

from pds_engine.runner import graphs
from pds_kernels import graph as aot

SEAL = b"key"


def volume() -> Path:
    """The user's own cache, so that only what is compiled in another way is compiled anew.

    A graph's own key holds its source, shapes and toolchain; the folder, how it is made.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    made = b"".join(Path(module.__file__).read_bytes() for module in (aot, graphs))
    return root / "pdserving" / "graphs" / hashlib.sha256(made).hexdigest()[:12]
