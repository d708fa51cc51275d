"""nvcc, from the packages beside torch or from an installed CUDA toolkit."""

import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

_PACKAGED = "nvidia/cu13"
"""Below site-packages: where torch's CUDA packages, and nvcc's, lay out one toolkit."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """A CUDA toolkit. Its places are no part of a key."""

    home: Path
    """What DeepGEMM calls CUDA_HOME."""
    nvcc: Path
    version: str
    """All that `nvcc --version` says: newer versions of DeepGEMM put the whole of it in a key."""
    libraries: str
    """The version of its C++ library (CCCL), which kernels include."""

    @property
    def text(self) -> str:
        """For a key."""
        release = re.search(r"release \S+ (\S+)", self.version)
        return f"nvcc {release[1] if release else self.version}, cccl {self.libraries}"


def find() -> Toolchain:
    """The toolkit that kernels are compiled by.

    Raises:
        RuntimeError: there is none, or its nvcc does not run.
    """
    packaged = Path(sysconfig.get_path("purelib")) / _PACKAGED
    on_path = shutil.which("nvcc")
    home = packaged
    if not (packaged / "bin" / "nvcc").is_file() and on_path:
        home = Path(on_path).resolve().parents[1]
    nvcc = home / "bin" / "nvcc"
    if not nvcc.is_file():
        raise RuntimeError("nvcc is not installed: pip install 'pdserving[kernels]'")
    done = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"nvcc does not run: {done.stderr.strip() or done.stdout.strip()}")
    return Toolchain(home, nvcc, done.stdout, _libraries(home))


def _libraries(home: Path) -> str:
    for below in ("include/cccl", "include"):
        file = home / below / "cuda/std/__cccl/version.h"
        if file.is_file():
            found = re.search(r"define CCCL_VERSION (\d+)", file.read_text())
            return found[1] if found else "?"
    return "?"
