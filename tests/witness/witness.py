"""What processes of a test start, seen from outside of them; and a clock that a test moves.

`preload.c` beside this file is preloaded into them, and into all that they start. So a compiler is
seen whoever calls it, by whatever path: g++, or the ptxas in Triton's own folder.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPILED, FOUND, LISTENS = "compiled", "found", "listens"
"""Kernels of Triton's, whose compiler is a library, and the hook that tells of them: see
`tell_of_triton`."""
_OF_C = {"c++", "g++", "gcc", "cc", "clang", "clang++", "cc1", "cc1plus", "as", "ld", "collect2"}
_OF_CUDA = {"nvcc", "cicc", "cudafe++", "ptxas", "fatbinary", "nvlink", "cuobjdump"}
COMPILERS = frozenset(_OF_C | _OF_CUDA)
"""By the names of their programs; see `is_compiler`."""


@dataclass(frozen=True, slots=True)
class Start:
    """A program that a process was to start, or that was started; or what Triton did."""

    pid: int
    parent: int
    """Of that process: who starts a program forks first."""
    how: str
    """asked, started, compiled, found, or listens."""
    path: str

    @property
    def is_compiler(self) -> bool:
        """Debian's are x86_64-linux-gnu-g++-12, or ld.bfd."""
        if self.how in (COMPILED, FOUND, LISTENS):
            return self.how == COMPILED
        name = Path(self.path).name
        words = name.replace(".", "-").split("-")
        return name in COMPILERS or not COMPILERS.isdisjoint(words)


class Witness:
    """Of processes that are started in `environment`; files of its own lie in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.file, self._clock = folder / "starts", folder / "clock"
        self._clock.write_bytes(bytes(8))
        self.file.touch()
        library = folder / "preload.so"
        source = Path(__file__).with_name("preload.c")
        words = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*words, str(source), "-o", str(library), "-ldl"], check=True)
        self.environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "PDS_WITNESS": str(self.file),
            "PDS_WITNESS_CLOCK": str(self._clock),
        }

    def starts(self) -> list[Start]:
        """All so far, in their order."""
        rows = (line.split(" ", 3) for line in self.file.read_text().splitlines())
        return [Start(int(pid), int(parent), how, path) for pid, parent, how, path in rows]

    def move_clocks(self, seconds: float) -> None:
        """All their clocks are so far ahead from now on; those that measure a processor's time are
        not."""
        with self._clock.open("r+b") as file:
            file.write(int(seconds * 1e9).to_bytes(8, "little", signed=True))


def tell_of_triton(file: Path) -> None:
    """From now on this process writes down which kernels Triton gives it, as Triton's own hook
    says: compiled, or found in its cache."""
    import triton

    before = triton.knobs.compilation.listener

    def tell(how: str, name: str) -> None:
        with file.open("a") as out:
            out.write(f"{os.getpid()} {os.getppid()} {how} {name}\n")

    def listen(*, src: Any, cache_hit: bool, **more: Any) -> None:
        tell(FOUND if cache_hit else COMPILED, src.name)
        if before is not None:
            before(src=src, cache_hit=cache_hit, **more)

    triton.knobs.compilation.listener = listen
    tell(LISTENS, "triton")
