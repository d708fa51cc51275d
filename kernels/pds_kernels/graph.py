"""Graphs compiled ahead of time: a function of tensors becomes a library that needs no compiler.

torch.export captures the function, AOTInductor compiles it (g++ on CPU, Triton on CUDA), and the
package it makes is what the compile cache holds. Loading one takes milliseconds, traces nothing,
and installs no guards: nothing is compiled silently later.
"""

import functools
import hashlib
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.utils import _pytree as pytree

from pds_kernels.building import note

PACKAGE = "graph.pt2"
_SETTINGS = {
    # The probes of each instruction set cost as much as the graph itself.
    "cpp.vec_isa_ok": True,
    # Two headers cost 20 s of CPU, one after the other, and save 9 s in each of two graphs, which
    # compile side by side; a pod starts with an empty folder for them.
    "aot_inductor.precompile_headers": False,
}
_COMPILER_BYTES = 960 << 20
"""torch, Inductor and g++ took 928 MiB at their peak for a layer's piece on x86 (torch 2.12), a
third of which several compilers share."""


@dataclass(frozen=True)
class Graph:
    """A function and the shapes it is compiled for: a `building.Buildable`."""

    kind: ClassVar[str] = "inductor"

    name: str
    function: Callable[..., Any]
    """Of tensors alone: weights are arguments, so that all layers share one compilation."""
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    """Shape and dtype of each argument; the first dimension of those in `varying` is an example."""
    varying: tuple[int, ...]
    """Arguments whose first dimension is the number of tokens, the same for all of them."""
    tokens: tuple[int, int]
    """The least and the greatest number of tokens; equal: compiled for just that number."""
    constants: str = ""
    """Whatever else the function closes over, as text."""
    sources: tuple[Path, ...] = ()
    """The files that define the function and what it calls."""

    @property
    def memory(self) -> int:
        """Bytes that its compiler takes: the examples are as big as the weights."""
        examples = [_example_shape(self, index) for index in range(len(self.inputs))]
        sizes = [dtype.itemsize for _, dtype in self.inputs]
        return _COMPILER_BYTES + sum(map(_bytes, examples, sizes))

    def build(self, folder: Path) -> None:
        """Compile it into `folder`."""
        build(self, folder)

    def key_inputs(self) -> dict[str, str]:
        """What decides the compiled artefact: source, shapes, target and toolchain."""
        return {
            "graph": self.name,
            "source": _source_digest(self.sources),
            "constants": self.constants,
            "inputs": repr([(shape, str(dtype)) for shape, dtype in self.inputs]),
            "tokens": repr((self.varying, self.tokens)),
            **toolchain(),
        }


@functools.cache
def toolchain() -> Mapping[str, str]:
    """The compilers and the processor: AOTInductor compiles for the machine it runs on.

    Raises:
        RuntimeError: there is no C++ compiler, or it does not run.
    """
    name = os.environ.get("CXX", "g++")
    try:
        compiler = subprocess.run(
            [name, "-dumpfullversion"], check=True, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeError(f"the C++ compiler {name} does not run: {error}") from error
    flags = [
        line
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith(("flags", "Features"))
    ]
    return {
        "torch": torch.__version__,
        "compiler": compiler.stdout.strip(),
        "target": f"cpu-{hashlib.sha256(''.join(flags[:1]).encode()).hexdigest()[:16]}",
    }


def build(graph: Graph, folder: Path) -> None:
    """Compile `graph` into `folder`."""
    # Here: whoever only loads graphs starts in half the time without them.
    import torch._inductor
    import torch.export

    note(graph.name)
    varied = [_example(graph, index) for index in range(len(graph.inputs))]
    least, greatest = graph.tokens
    tokens = torch.export.Dim("tokens", min=least, max=greatest) if least < greatest else None
    shapes = tuple(
        {0: tokens} if tokens and index in graph.varying else None
        for index in range(len(graph.inputs))
    )
    program = torch.export.export(
        _Module(graph.function), tuple(varied), dynamic_shapes=(shapes,), strict=False
    )
    with tempfile.TemporaryDirectory(prefix="pds-inductor-") as scratch:
        before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch
        try:
            with torch._inductor.config.patch(_SETTINGS):
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(folder / PACKAGE)
                )
        finally:
            if before is None:
                del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            else:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def load(folder: Path) -> Callable[..., Any]:
    """The compiled function in `folder`. It takes and returns what the original does.

    torch's own `aoti_load_package` compares the processor with the one that it was compiled for,
    and compiles small programs in each new pod to know its own: half a minute of a core. It also
    imports all of torch.export, as much work as torch itself. The cache's key holds the processor
    (`toolchain`), so the loader beneath it is asked.
    """
    path, name = str(folder / PACKAGE), "model"
    # Single-threaded, by one runner, on the device that it was compiled for.
    return _Loaded(torch._C._aoti.AOTIModelPackageLoader(path, name, True, 1, -1))


class _Loaded:
    """torch's `AOTICompiledModel` reads both of its signatures anew in each call."""

    def __init__(self, loader: torch._C._aoti.AOTIModelPackageLoader) -> None:
        _, returned = loader.get_call_spec()
        self._loader = loader
        self._returned = pytree.treespec_loads(returned)

    def __call__(self, *arguments: torch.Tensor) -> Any:
        return pytree.tree_unflatten(self._loader.boxed_run([*arguments]), self._returned)


class _Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *arguments: torch.Tensor) -> Any:
        return self._function(*arguments)


def _example_shape(graph: Graph, index: int) -> tuple[int, ...]:
    shape, _ = graph.inputs[index]
    if index not in graph.varying:
        return shape
    least, greatest = graph.tokens
    return (min(greatest, max(least, 16)), *shape[1:])


def _bytes(shape: tuple[int, ...], itemsize: int) -> int:
    return math.prod(shape) * itemsize


def _example(graph: Graph, index: int) -> torch.Tensor:
    shape, dtype = _example_shape(graph, index), graph.inputs[index][1]
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=dtype)
    return torch.zeros(shape, dtype=dtype)


def _source_digest(sources: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in sources:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
