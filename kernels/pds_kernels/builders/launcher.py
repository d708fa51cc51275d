"""The module in C by which Triton launches its kernels on CUDA.

Triton compiles it by gcc when the first kernel is launched, in the middle of a request. It is the
same for all kernels and GPUs. Its name in Triton's cache follows from its source and the platform
alone, so it can be compiled where no CUDA driver is: the linker gets an empty library in the
driver's place.
"""

import base64
import hashlib
import os
import shutil
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import triton
from triton.backends.nvidia import driver
from triton.runtime.build import platform_key

from pds_kernels.building import note
from pds_kernels.targets import Gpu

MODULE = "cuda_utils"
_DRIVER = "libcuda.so.1"


@dataclass(frozen=True)
class Launcher:
    """That module: a pds_kernels.building.Buildable. Its artefact is as a Triton kernel's."""

    kind: ClassVar[str] = "triton"
    memory: ClassVar[int] = 1 << 28
    name: ClassVar[str] = "launcher"

    target: Gpu

    def key_inputs(self) -> dict[str, str]:
        """What decides the module.

        Raises:
            RuntimeError: there is no C compiler.
        """
        words = [_compiler(), "-dumpfullversion"]
        version = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()
        return {
            "module": MODULE,
            "source": hashlib.sha256(_source().encode()).hexdigest(),
            "platform": f"{platform_key()}, {_suffix()}",
            "target": str(self.target),
            "toolchain": f"triton {triton.__version__}, {Path(words[0]).name} {version}",
        }

    def build(self, folder: Path) -> None:
        """One folder, named as Triton names it, with the module.

        Raises:
            RuntimeError: the compiler refuses.
        """
        place = folder / key()
        place.mkdir()
        note(self.name)
        with tempfile.TemporaryDirectory(prefix="pds-launcher-") as scratch:
            source, empty = Path(scratch) / f"{MODULE}.c", Path(scratch) / _DRIVER
            source.write_text(_source())
            shared = [_compiler(), "-shared", "-fPIC"]
            _run([*shared, f"-Wl,-soname,{_DRIVER}", "-x", "c", os.devnull, "-o", str(empty)])
            includes = [*driver.include_dirs, sysconfig.get_paths()["include"]]
            linked = ["-Wl,--no-as-needed", f"-L{scratch}", f"-l:{_DRIVER}"]
            target = place / f"{MODULE}{_suffix()}"
            words = [*shared, "-O3", "-Wno-psabi", *(f"-I{each}" for each in includes)]
            _run([*words, str(source), "-o", str(target), *linked])


def key() -> str:
    """The module's folder in Triton's cache."""
    digest = hashlib.sha256((_source() + platform_key()).encode()).digest()
    return base64.b32encode(digest).decode().rstrip("=")


def _source() -> str:
    return (Path(driver.dirname) / "driver.c").read_text()


def _suffix() -> str:
    return str(sysconfig.get_config_var("EXT_SUFFIX"))


def _compiler() -> str:
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise RuntimeError("Triton's launcher needs a C compiler: install gcc")
    return found


def _run(words: list[str]) -> None:
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"the C compiler {words[0]} does not run: {error}") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(
            f"{words[0]} refuses Triton's launcher: {error.stderr[-2000:]}"
        ) from error
