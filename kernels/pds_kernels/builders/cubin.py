"""What a compiled kernel takes of a multiprocessor, read from the binary."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import triton

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclass(frozen=True, slots=True)
class Resources:
    """Of one block of threads."""

    registers: int
    """A thread's."""
    stack: int
    """Bytes of a thread in slow memory. Our kernels have no arrays: these are spilled registers."""
    shared: int
    """Bytes of shared memory, static and dynamic."""


def resources(cubin: Path, dynamic_shared: int) -> Resources:
    """Those of the one kernel in `cubin`. `dynamic_shared`: bytes that it is launched with.

    Raises:
        RuntimeError: it cannot be read.
    """
    words = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    found = _USAGE.search(done.stdout)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of {cubin.name}: {done.stderr.strip()}")
    registers, stack, shared, local = map(int, found.groups())
    return Resources(registers, stack + local, shared + dynamic_shared)
