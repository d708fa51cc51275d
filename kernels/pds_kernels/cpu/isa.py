"""Instruction sets that kernels are compiled for. A machine runs the best that it has."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction set, as g++ and the Linux kernel name it."""

    name: str
    machine: str
    """As `uname -m` has it; empty: any."""
    flags: tuple[str, ...]
    """For g++."""
    needs: frozenset[str]
    """Of /proc/cpuinfo's."""

    @property
    def multiplies_bf16(self) -> bool:
        """Whether products of bfloat16 numbers are quicker than those of float32."""
        return "avx512_bf16" in self.needs


_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (
    *_AVX2,
    "-mavx512f",
    "-mavx512bw",
    "-mavx512dq",
    "-mavx512vl",
    "-mprefer-vector-width=512",
)
_HAS_AVX2 = frozenset({"avx2", "fma", "f16c"})
_HAS_AVX512 = _HAS_AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
ISAS = (
    Isa("avx512_bf16", "x86_64", (*_AVX512, "-mavx512bf16"), _HAS_AVX512 | {"avx512_bf16"}),
    Isa("avx512", "x86_64", _AVX512, _HAS_AVX512),
    Isa("avx2", "x86_64", _AVX2, _HAS_AVX2),
    Isa("baseline", "", (), frozenset()),
)
"""The best first. The last one is whatever g++ takes every processor of the machine's kind for."""


AT_MOST = "PDS_CPU_ISA"
"""The environment variable that names the best set to be used."""


def best(machine: str, has: frozenset[str], at_most: str = "") -> Isa:
    """The best one for such a machine (`uname -m`) whose processor `has` these flags, and not
    better than `at_most`.

    Raises:
        ValueError: there is no set of that name.
    """
    names = [isa.name for isa in ISAS]
    if at_most and at_most not in names:
        raise ValueError(f"{AT_MOST} is {at_most}: it may be {', '.join(names)}")
    usable = ISAS[names.index(at_most) :] if at_most else ISAS
    return next(isa for isa in usable if isa.machine in ("", machine) and isa.needs <= has)


@functools.cache
def here() -> Isa:
    """This machine's."""
    has = flags(Path("/proc/cpuinfo").read_text())
    return best(os.uname().machine, has, os.environ.get(AT_MOST, ""))


def flags(cpuinfo: str) -> frozenset[str]:
    """What the first processor of /proc/cpuinfo has."""
    for line in cpuinfo.splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return frozenset()
