"""The one door through which every Triton kernel is launched.

A warm-up runs the same host code on meta tensors, within `recording`: what it would launch is
written down, and nothing runs. So the list of what to compile is never a second list beside the
code that launches.

Triton compiles a kernel anew for each dtype, each constexpr, and by two properties of each number
and pointer: whether it is 1, and whether 16 divides it. So a number that changes while a model is
served must be named in the kernel's `do_not_specialize`, and pointers must be aligned to 16 bytes.
"""

import contextlib
import contextvars
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16
_WIDE = 1 << 31
"""From here on a number takes 64 bits."""
_recorder: contextvars.ContextVar[list["Launch"] | None] = contextvars.ContextVar(
    "recorder", default=None
)


@dataclass(frozen=True, slots=True)
class Pointer:
    """A tensor, as far as it decides what is compiled."""

    dtype: torch.dtype
    aligned: bool = True
    """To 16 bytes."""


@dataclass(frozen=True)
class Launch:
    """A kernel and what decides how it is compiled. It can cross to another process."""

    module: str
    function: str
    arguments: tuple[Pointer | int | float | None, ...]
    constants: tuple[tuple[str, Any], ...]
    """Constexprs, and num_warps, num_stages and the like, sorted by name."""

    @property
    def name(self) -> str:
        room = self.module.removeprefix("pds_kernels.").removesuffix(".triton")
        return f"{room}.{self.function}"


def launch(kernel: Any, grid: Sequence[int], *arguments: Any, **constants: Any) -> None:
    """Run `kernel`, a function of `triton.jit`, on `grid` programs; or record it.

    Without programs nothing runs: CUDA refuses an empty grid.
    """
    recorded = _recorder.get()
    if recorded is not None:
        recorded.append(described(kernel, arguments, constants))
    elif all(grid):
        run(kernel, grid, arguments, constants)


def run(
    kernel: Any, grid: Sequence[int], arguments: Sequence[Any], constants: Mapping[str, Any]
) -> None:
    """Launch it."""
    kernel[tuple(grid)](*arguments, **constants)


def described(kernel: Any, arguments: Sequence[Any], constants: Mapping[str, Any]) -> Launch:
    """What decides how `kernel` is compiled for these arguments.

    Raises:
        TypeError: an argument is neither a tensor nor a number.
    """
    varying = _varying(kernel)
    return Launch(
        module=kernel.fn.__module__,
        function=kernel.fn.__name__,
        arguments=tuple(
            _argument(each, varies=name in varying)
            for name, each in zip(kernel.arg_names, arguments, strict=False)
        ),
        constants=tuple(sorted(constants.items())),
    )


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """What is launched within the block is written down, and does not run."""
    found: list[Launch] = []
    token = _recorder.set(found)
    try:
        yield found
    finally:
        _recorder.reset(token)


def _varying(kernel: Any) -> Sequence[str]:
    """The names of numbers for which it is not compiled anew."""
    known = kernel.kwargs if hasattr(kernel, "kwargs") else vars(kernel)  # interpreted, or not
    return known.get("do_not_specialize") or ()


def _argument(argument: Any, *, varies: bool) -> Pointer | int | float | None:
    if isinstance(argument, Tensor):
        offset = argument.storage_offset() * argument.element_size()
        return Pointer(argument.dtype, aligned=offset % _ALIGNMENT == 0)
    if argument is None or isinstance(argument, bool):
        return argument
    if isinstance(argument, int):
        return _alike(argument, varies=varies)
    if isinstance(argument, float):
        return 1.0  # its value decides nothing
    raise TypeError(f"a kernel takes tensors and numbers, not {type(argument).__name__}")


def _alike(number: int, *, varies: bool) -> int:
    """One number for all that are compiled alike."""
    wide = 0 if -_WIDE <= number < _WIDE else 2 * _WIDE
    if varies:
        return wide + 2
    if number == 1:
        return 1
    return wide + (16 if number % 16 == 0 else 2)
