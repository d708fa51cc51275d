"""One kernel of DeepGEMM: from the source that DeepGEMM wrote to the files that it looks up."""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pds_kernels.builders.cubin import Resources, resources
from pds_kernels.builders.deep_gemm.toolchain import Toolchain
from pds_kernels.building import note
from pds_kernels.targets import Gpu

_MEMORY = 1 << 30
"""Bytes: cicc, the largest of nvcc's processes, took 0.5 GiB at most."""
_SOURCE, _CUBIN = "kernel.cu", "kernel.cubin"
_HEADERS = re.compile(r"/\S*/deep_gemm/include\b")


@dataclass(frozen=True)
class DeepGemmKernel:
    """One variant of one kernel: a pds_kernels.building.Buildable."""

    kind: ClassVar[str] = "deep_gemm"
    memory: ClassVar[int] = _MEMORY

    function: str
    """DeepGEMM's name of it: sm90_fp8_gemm_1d2d."""
    source: str
    """It instantiates the kernel, and names the digest of DeepGEMM's headers."""
    flags: tuple[str, ...]
    """nvcc's."""
    entry: str
    """The folder in which this installation of DeepGEMM looks: its key, which holds its place."""
    library: str
    """DeepGEMM's version."""
    toolchain: Toolchain
    target: Gpu

    @property
    def name(self) -> str:
        return f"{self.function}[{_digest(self.source)}]"

    def key_inputs(self) -> dict[str, str]:
        """What decides the kernel. DeepGEMM's own key also holds where it is installed: a volume
        serves images that differ in that, and `install` gives the files the name of this one."""
        return {
            "kernel": self.function,
            "source": _digest(self.source),
            "flags": _HEADERS.sub("<headers>", " ".join(self.flags)),
            "target": str(self.target),
            "multiprocessors": str(self.target.sms),
            "toolchain": f"sgl-deep-gemm {self.library}, {self.toolchain.text}",
        }

    def build(self, folder: Path) -> None:
        """The two files of an entry of DeepGEMM's cache.

        Raises:
            RuntimeError: nvcc refuses.
        """
        (folder / _SOURCE).write_text(self.source)
        words = [str(self.toolchain.nvcc), _SOURCE, "-cubin", "-o", _CUBIN, *self.flags]
        note(self.name)
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not (folder / _CUBIN).is_file():
            said = (done.stderr or done.stdout).strip()[-2000:]
            raise RuntimeError(f"nvcc refuses {self.name}: {said}")


def install(kernel: DeepGemmKernel, folder: Path, cache: Path) -> None:
    """Put the artefact in `folder` where DeepGEMM looks, below DG_JIT_CACHE_DIR, at `cache`.

    An entry appears with both its files, or not at all: DeepGEMM takes half of one for damage.

    Raises:
        ValueError: the artefact is another kernel's.
    """
    if (folder / _SOURCE).read_text() != kernel.source:
        raise ValueError(f"the artefact in {folder.name} is not {kernel.name}")
    place = cache / "cache" / kernel.entry
    if (place / _CUBIN).is_file():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="pds-", dir=place.parent))
    try:
        for name in (_SOURCE, _CUBIN):
            shutil.copyfile(folder / name, scratch / name)
        scratch.chmod(0o755)
        os.rename(scratch, place)
    except OSError:
        if not (place / _CUBIN).is_file():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def usage(folder: Path, shared: int) -> Resources:
    """What the kernel in `folder`, launched with `shared` bytes, takes of a multiprocessor."""
    return resources(folder / _CUBIN, shared)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
