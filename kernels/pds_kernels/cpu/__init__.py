"""What the kernels for CPUs share. A room's own are in its `cpu.cpp`; its `cpu.py` calls them.

vec.h        vectors of floats, as wide as the processor's
op.h         an operation, as several threads compute it together
panels.h     products by weights that are packed once
finish.h     what becomes of a product's sums: a bias, a gated block's activation
block.h      attention over a block of keys and values
program.cpp  runs a list of operations in one call; program.py makes such lists
library.py   a room's library: compiled ahead for an instruction set, provided, looked up
isa.py       the instruction sets, and which of them this machine has

A kernel for CPUs is a class. Its `op` makes an operation on memory that is given, as part of a
program; calling it runs that operation by itself, on tensors that it makes. It looks its functions
up when it is made.
"""

from pds_kernels.cpu.isa import Isa, here
from pds_kernels.cpu.library import Library, NoCompiler, loaded, of_room, provide, provided
from pds_kernels.cpu.program import LIBRARY as PROGRAM
from pds_kernels.cpu.program import NAMES, Op, Program, Step, fields, function, run, use_threads

__all__ = [
    "NAMES",
    "PROGRAM",
    "Isa",
    "Library",
    "NoCompiler",
    "Op",
    "Program",
    "Step",
    "fields",
    "function",
    "here",
    "loaded",
    "of_room",
    "provide",
    "provided",
    "run",
    "use_threads",
]
