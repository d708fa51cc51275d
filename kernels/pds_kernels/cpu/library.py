"""A room's kernels as a library: what warm-up compiles, and what a worker loads.

A kernel serves only once its library is provided: nothing is compiled when it is first called.
"""

import ctypes
import functools
import hashlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pds_kernels.building import note
from pds_kernels.cpu.isa import Isa, here

FILE = "kernels.so"
_HERE = Path(__file__).parent
_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fvisibility=hidden",
    # Neither changes a result: nobody asks for errno or for floating-point traps.
    "-fno-math-errno",
    "-fno-trapping-math",
)
_COMPILER_BYTES = 704 << 20
"""g++ 12 took 621 MiB at its peak for the largest of them."""
_provided: dict[str, ctypes.CDLL] = {}


class NoCompiler(RuntimeError):
    """Even what is compiled already is looked up by the compiler's version."""


@dataclass(frozen=True)
class Library:
    """One room's source, for one instruction set: a `building.Buildable`."""

    kind: ClassVar[str] = "cpp"

    name: str
    """Of the room."""
    source: Path
    isa: Isa

    @property
    def memory(self) -> int:
        return _COMPILER_BYTES

    def key_inputs(self) -> Mapping[str, str]:
        """Sources, instruction set and compiler: other differences of processors do not count."""
        digest = hashlib.sha256()
        headers = (*self.source.parent.glob("*.h"), *_HERE.glob("*.h"))
        for path in (self.source, *sorted(headers)):
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return {
            "library": self.name,
            "source": digest.hexdigest()[:16],
            "flags": " ".join((*_FLAGS, *self.isa.flags)),
            "compiler": compiler_version(),
            "target": target(self.isa),
        }

    def build(self, folder: Path) -> None:
        """Compile it into `folder`.

        Raises:
            CalledProcessError: g++ did not take the source; its words are in it.
        """
        note(self.name)
        command = [compiler(), *_FLAGS, *self.isa.flags, f"-I{_HERE}", str(self.source)]
        done = subprocess.run(
            [*command, "-o", str(folder / FILE)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)


def compiler() -> str:
    """The C++ compiler: $CXX or g++."""
    return os.environ.get("CXX", "g++")


@functools.cache
def compiler_version() -> str:
    """Of `compiler`.

    Raises:
        NoCompiler: there is none, or it does not run.
    """
    name = compiler()
    try:
        found = subprocess.run(
            [name, "-dumpfullversion"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoCompiler(f"the C++ compiler {name} does not run: {error}") from error
    return found.stdout.strip()


def target(isa: Isa) -> str:
    """What artefacts for `isa` are made for, as `pds-engine cache` names it."""
    return f"cpu-{os.uname().machine}-{isa.name}"


def of_room(module: str) -> Library:
    """The library of the room that has the file `module`, for this machine."""
    room = Path(module).parent
    return Library(room.name, room / "cpu.cpp", here())


def provide(name: str, folder: Path) -> None:
    """Load the library `name`, compiled in `folder`: kernels of its room serve from now on."""
    _provided[name] = ctypes.CDLL(str(folder / FILE))


def provided(name: str) -> bool:
    """Whether the library `name` is there."""
    return name in _provided


def loaded(name: str) -> ctypes.CDLL:
    """The library `name`.

    Raises:
        RuntimeError: nobody has provided it.
    """
    if name not in _provided:
        raise RuntimeError(f"the library {name} was not compiled ahead, and is not provided")
    return _provided[name]
