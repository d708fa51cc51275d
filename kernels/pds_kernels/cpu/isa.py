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


def best(machine: str, has: frozenset[str]) -> Isa:
    """The best one for such a machine (`uname -m`) whose processor `has` these flags."""
    return next(isa for isa in ISAS if isa.machine in ("", machine) and isa.needs <= has)


@functools.cache
def here() -> Isa:
    """This machine's."""
    return best(os.uname().machine, flags(Path("/proc/cpuinfo").read_text()))


def flags(cpuinfo: str) -> frozenset[str]:
    """What the first processor of /proc/cpuinfo has."""
    for line in cpuinfo.splitlines():
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(words.split())
    return frozenset()
