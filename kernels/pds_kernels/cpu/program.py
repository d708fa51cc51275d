"""Lists of operations that run in one call, by threads that wait for each other in between."""

import ctypes
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from pds_kernels.cpu.isa import here
from pds_kernels.cpu.library import Library, loaded
from pds_kernels.plan import AttentionPlan

LIBRARY = Library("program", Path(__file__).with_name("program.cpp"), here())


class Step(ctypes.Structure):
    """op.h's: what changes with each step."""

    _fields_ = (
        ("tokens", ctypes.c_int64),
        ("requests", ctypes.c_int64),
        ("pages", ctypes.c_int64),
        ("page_table", ctypes.c_void_p),
        ("seq_lens", ctypes.c_void_p),
        ("cu_seqlens", ctypes.c_void_p),
        ("write_slots", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
    )

    @classmethod
    def of(cls, tokens: int, plan: AttentionPlan | None = None) -> Self:
        """A step of so many tokens. The plan's tensors must outlive it."""
        if plan is None:
            return cls(tokens=tokens)
        requests, pages = plan.page_table.shape
        step: Self = fields(
            cls,
            tokens=tokens,
            requests=requests,
            pages=pages,
            page_table=plan.page_table,
            seq_lens=plan.seq_lens,
            cu_seqlens=plan.cu_seqlens_q,
            write_slots=plan.write_slots,
        )
        return step


class Op(NamedTuple):
    """An operation: the function of a library, and its arguments."""

    function: int
    """Its address."""
    arguments: ctypes.Structure


class _Instruction(ctypes.Structure):
    _fields_ = (("function", ctypes.c_void_p), ("arguments", ctypes.c_void_p))


class Program:
    """Operations one after another. Their arguments may be changed between two calls.

    Each thread that runs programs has a crew (`use_threads`), itself among them. One program may be
    run by one thread at a time.
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        self._ops = tuple(ops)  # their arguments must live as long as it does
        self._code = (_Instruction * len(ops))(
            *(_Instruction(op.function, ctypes.addressof(op.arguments)) for op in ops)
        )
        self._run = loaded(LIBRARY.name).pds_run
        self._run.argtypes = (ctypes.c_void_p,) * 2 + (ctypes.c_int64, ctypes.c_void_p)
        self._run.restype = None

    def run(self, step: Step) -> None:
        """Compute all of them; returns when the last one is done."""
        self._run(_crew().pool, self._code, len(self._ops), ctypes.byref(step))


def run(op: Op, tokens: int, plan: AttentionPlan | None = None) -> None:
    """One operation by itself."""
    Program((op,)).run(Step.of(tokens, plan))


def function(library: str, name: str) -> int:
    """The address of an operation.

    Raises:
        RuntimeError: the library is not provided.
        AttributeError: it has no such operation.
    """
    return ctypes.cast(getattr(loaded(library), name), ctypes.c_void_p).value or 0


def fields(structure: type[Any], **values: Tensor | float | None) -> Any:
    """A `structure` of these fields: a tensor is given by the address of its first number, and
    lives as long as the structure does."""
    plain = {
        name: value.data_ptr() if isinstance(value, Tensor) else value
        for name, value in values.items()
    }
    made = structure(**plain)
    made.kept = [value for value in values.values() if isinstance(value, Tensor)]
    return made


NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
"""Of dtypes, in the names of operations."""


def use_threads(count: int) -> None:
    """From now on crews are of `count` threads, and torch's own operations run on one: threads of
    OpenMP spin for a while after each of these, on the cores that a crew needs."""
    global _members
    _members = count
    torch.set_num_threads(1)


class _Crew:
    """The threads that compute what one thread runs, itself among them. They do not survive a
    fork, so `process` is part of whose they are."""

    def __init__(self, members: int, process: int) -> None:
        self.made_for = (members, process)
        library = loaded(LIBRARY.name)
        library.pds_pool.argtypes = (ctypes.c_int, ctypes.c_int)
        library.pds_pool.restype = ctypes.c_void_p
        library.pds_pool_end.argtypes = (ctypes.c_void_p,)
        self._end = library.pds_pool_end
        self.pool = library.pds_pool(members, True)

    def __del__(self) -> None:
        if self.made_for[1] == os.getpid():
            self._end(self.pool)


_members = 0
"""0: as many as torch has."""
_own = threading.local()


def _crew() -> _Crew:
    """This thread's."""
    wanted = _members or torch.get_num_threads(), os.getpid()
    found: _Crew | None = getattr(_own, "crew", None)
    if found is None or found.made_for != wanted:
        found = _own.crew = _Crew(*wanted)
    return found
