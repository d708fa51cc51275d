"""Kernels compiled for a GPU that is not here, in a process in which Triton does not interpret."""

import functools
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pds_kernels.launching import Launch
from pds_kernels.targets import SHARED_LIMIT, gpu

HOPPER = gpu("sm_90")


@dataclass(frozen=True)
class Compiled:
    """A kernel for sm_90."""

    name: str
    registers: int
    stack: int
    """Bytes of a thread: spilled registers."""
    shared: int


Compile = Callable[[Sequence[Launch]], list[Compiled]]


def fresh() -> ProcessPoolExecutor:
    """A process in which Triton compiles."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=not_interpreting)


@functools.cache
def shared() -> ProcessPoolExecutor:
    """One for all tests of a session: it takes seconds to import torch and Triton."""
    return fresh()


def not_interpreting() -> None:
    os.environ.pop("TRITON_INTERPRET", None)


def compiled(launches: Sequence[Launch]) -> list[Compiled]:
    """All of `launches`, each variant once; what they take is printed (`pytest -rP`)."""
    found = shared().submit(build, list(dict.fromkeys(launches))).result()
    assert found
    for each in found:
        took = f"{each.registers} registers, {each.shared} bytes shared, {each.stack} spilled"
        print(f"{each.name}: {took}")
        assert each.shared <= SHARED_LIMIT
    return found


def elsewhere(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` gives in a fresh process."""
    with fresh() as pool:
        return pool.submit(work, *arguments).result()


def build(launches: Sequence[Launch]) -> list[Compiled]:
    from pds_kernels.builders.triton import TritonKernel, usage

    found = []
    for launch in launches:
        kernel = TritonKernel(launch, HOPPER)
        with tempfile.TemporaryDirectory() as folder:
            kernel.build(Path(folder))
            took = usage(Path(folder))
        found.append(Compiled(kernel.name, took.registers, took.stack, took.shared))
    return found


def build_one(launch: Launch, folder: Path) -> None:
    from pds_kernels.builders.triton import TritonKernel

    TritonKernel(launch, HOPPER).build(folder)


def keys(launches: list[Launch]) -> list[dict[str, str]]:
    """Triton's own keys of `launches`, and that of the last one for another GPU."""
    found: list[dict[str, str]] = shared().submit(keys_here, launches).result()
    return found


def keys_here(launches: list[Launch]) -> list[dict[str, str]]:
    from pds_kernels.builders.triton import TritonKernel

    found = [TritonKernel(each, HOPPER).key_inputs() for each in launches]
    return [*found, TritonKernel(launches[-1], gpu("sm_100")).key_inputs()]


def variants(*steps: list[Launch]) -> list[set[tuple[str, ...]]]:
    """What Triton would compile for each step's launches, by its own keys."""
    found = iter(keys([launch for step in steps for launch in step]))
    return [{tuple(next(found).values()) for _ in step} for step in steps]


def look_up(launch: Launch, built: Path, cache: Path) -> list[bool]:
    """Whether Triton finds each kernel that it is asked for in `cache`."""
    import triton
    from pds_kernels.builders import triton as builder

    builder.install(built, cache)
    triton.knobs.cache.dir = str(cache)
    hits: list[bool] = []

    def note(*, cache_hit: bool, **_: object) -> None:
        hits.append(cache_hit)

    triton.knobs.compilation.listener = note
    with builder._pretending(HOPPER):
        builder._warm(builder._function(launch), launch)
    return hits
