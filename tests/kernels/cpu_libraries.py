"""The kernels for CPUs, compiled once a user for each instruction set that this machine has.

They are in the user's own cache: g++ takes some seconds for each. Importing this provides the best
ones, so that rooms list them among the kernels that serve this machine.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pds_kernels
import pytest
from pds_kernels import cpu
from pds_kernels.cache import Cache
from pds_kernels.choosing import Kernel
from pds_kernels.cpu import isa, library, program

ROOMS = sorted(Path(pds_kernels.__file__).parent.glob("*/cpu.cpp"))
HERE = [each for each in isa.ISAS if each.machine in ("", os.uname().machine)]
MINE = [each for each in HERE if each.needs <= isa.flags(Path("/proc/cpuinfo").read_text())]
"""The instruction sets of this machine, the best first."""


def libraries(which: isa.Isa) -> list[library.Library]:
    """Every room's, for one instruction set."""
    rooms = [library.Library(source.parent.name, source, which) for source in ROOMS]
    return [replace(program.LIBRARY, isa=which), *rooms]


def found(wanted: library.Library) -> Path:
    """Where `wanted` lies compiled."""
    return _cache().get(wanted.kind, wanted.key_inputs(), wanted.build, timeout=300).folder


def provide() -> None:
    """All of the best instruction set."""
    for each in libraries(MINE[0]):
        cpu.provide(each.name, found(each))


@contextmanager
def using(which: isa.Isa) -> Iterator[None]:
    """What is made within calls the libraries of this instruction set."""
    with patch.dict(library._provided):
        for each in libraries(which):
            cpu.provide(each.name, found(each))
        yield


@contextmanager
def without() -> Iterator[None]:
    """Nothing is provided: layers are made of plain torch."""
    with patch.dict(library._provided, clear=True):
        yield


def others(kernel: Kernel[Any, Any]) -> list[tuple[Kernel[Any, Any], tuple[Any, ...]]]:
    """A kernel for CPUs, in every other instruction set that this machine has, and a test's marks:
    AVX2 differs the most from the best one, and the rest is for soaks."""
    if kernel.name != "cpu":
        return []
    marks = {"avx2": ()}
    return [(_in(kernel, which), marks.get(which.name, (pytest.mark.soak,))) for which in MINE[1:]]


def _in(kernel: Kernel[Any, Any], which: isa.Isa) -> Kernel[Any, Any]:
    def make(geometry: Any) -> Any:
        with using(which):
            return kernel.make(geometry)

    return replace(kernel, name=f"cpu-{which.name}", make=make)


SEAL = b"key"
VOLUME = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdserving" / "kernels"
_opened: list[Cache] = []


def _cache() -> Cache:
    if not _opened:
        private = Path(tempfile.mkdtemp(prefix="pds-kernels-"))
        atexit.register(shutil.rmtree, private, ignore_errors=True)
        _opened.append(Cache(VOLUME, private, SEAL))
    return _opened[0]


provide()
