"""The compiled kernels for CPUs, of the instruction set that a benchmark asks for."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pds_kernels import cpu
from pds_kernels.cpu import isa, program

from common import say


def sets(*, few: bool) -> list[isa.Isa]:
    """Those of this machine, the best first; `few`: no others than it and AVX2."""
    has = isa.flags(Path("/proc/cpuinfo").read_text())
    here = os.uname().machine
    found = [each for each in isa.ISAS if each.machine in ("", here) and each.needs <= has]
    return [each for each in found if not few or each is found[0] or each.name == "avx2"]


@contextmanager
def of(which: isa.Isa, *libraries: cpu.Library) -> Iterator[None]:
    """Whatever is made within computes with this instruction set."""
    say(f"kernels of {which.name}")
    with TemporaryDirectory() as folder:
        for library in (program.LIBRARY, *libraries):
            place = Path(folder) / library.name
            place.mkdir()
            replace(library, isa=which).build(place)
            cpu.provide(library.name, place)
        yield
