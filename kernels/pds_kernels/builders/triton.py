"""Triton kernels compiled ahead of time, under the key that a process on the GPU looks up.

Triton takes target and device from its active driver. Here a driver stands in that knows a target
and has no device, so that Triton's own code names and compiles the kernel. A pod that has the GPU
gets the files into its Triton cache (`install`), and finds them there by the same name.
"""

import contextlib
import hashlib
import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.driver import driver

from pds_kernels.builders.cubin import Resources, resources
from pds_kernels.building import note
from pds_kernels.launching import Launch, Pointer
from pds_kernels.targets import Gpu

_MEMORY = 1 << 30
"""Bytes: the largest attention kernel takes 0.6 GiB, most of it torch and LLVM."""
_WARP = 32
_GROUP = "__grp__"
"""Begins the name of the file in which Triton lists a kernel's files, by absolute paths."""


@dataclass(frozen=True)
class TritonKernel:
    """One variant of one kernel: a pds_kernels.building.Buildable."""

    kind: ClassVar[str] = "triton"
    memory: ClassVar[int] = _MEMORY

    launch: Launch
    target: Gpu

    @property
    def name(self) -> str:
        digest = hashlib.sha256(repr(self.launch).encode()).hexdigest()
        return f"{self.launch.name}[{_text(self.launch)}] {digest[:6]}"

    def key_inputs(self) -> dict[str, str]:
        """Triton's own key in its parts."""
        kernel, found = _function(self.launch), {}

        def note(*, key: str, **_: Any) -> bool:
            found["variant"] = str(key)
            return True  # and so nothing is compiled

        with _pretending(self.target) as backend, triton.knobs.runtime.scope():
            triton.knobs.runtime.jit_cache_hook = note
            kernel.device_caches.clear()
            _warm(kernel, self.launch)
        return {
            "kernel": f"{self.launch.module}.{self.launch.function}",
            "source": kernel.cache_key,
            **found,
            "target": str(self.target),
            "toolchain": f"triton {triton.__version__}, {backend.hash()}",
        }

    def build(self, folder: Path) -> None:
        """One folder, named as Triton names it, with the kernel and what Triton says of it."""
        kernel = _function(self.launch)
        with (
            _pretending(self.target),
            tempfile.TemporaryDirectory(prefix="pds-triton-") as scratch,
            triton.knobs.cache.scope(),
            triton.knobs.compilation.scope(),
        ):
            triton.knobs.cache.dir = scratch
            triton.knobs.compilation.store_binary_only = True
            kernel.device_caches.clear()
            _warm(kernel, self.launch)
            note(self.name)
            for made in Path(scratch).iterdir():
                (folder / made.name).mkdir()
                for file in made.iterdir():
                    if file.is_file() and not file.name.startswith(_GROUP):
                        shutil.copy(file, folder / made.name / file.name)


def install(folder: Path, cache: Path) -> None:
    """Put the artefact in `folder` where Triton looks, below TRITON_CACHE_DIR, at `cache`."""
    for made in folder.iterdir():
        if not made.is_dir():
            continue
        place = cache / made.name
        place.mkdir(parents=True, exist_ok=True)
        files = {file.name: str(place / file.name) for file in sorted(made.iterdir())}
        for name, path in files.items():
            _place(Path(path), (made / name).read_bytes())
        group = json.dumps({"child_paths": files}).encode()
        for meta in files:
            if meta.endswith(".json"):  # a kernel's; the launcher has none
                _place(place / f"{_GROUP}{meta}", group)


def usage(folder: Path) -> Resources:
    """What the kernel in `folder` takes of a multiprocessor."""
    (cubin,) = folder.glob("*/*.cubin")
    (meta,) = (path for path in cubin.parent.glob("*.json") if not path.name.startswith(_GROUP))
    said = json.loads(meta.read_text())
    return resources(cubin, said["shared"])


def look_up(cache: Path) -> None:
    """This process takes its kernels from `cache`. What it compiles all the same is counted
    (building.builds)."""

    def listen(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            note(src.name)

    triton.knobs.cache.dir = str(cache)
    triton.knobs.compilation.listener = listen


class _Driver:
    """Stands in for the CUDA driver: knows the target, has no device."""

    def __init__(self, target: Gpu) -> None:
        self._target = target

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._target.arch, _WARP)

    def get_current_device(self) -> str:
        """Kernels keep what they know by device: by no number that a real one has."""
        return str(self._target)

    def get_current_stream(self, _: object) -> int:
        return 0


class _Mock:
    """What Triton asks of a tensor when it chooses a variant."""

    def __init__(self, pointer: Pointer) -> None:
        self.dtype = pointer.dtype
        self._address = 0 if pointer.aligned else 8

    def data_ptr(self) -> int:
        return self._address

    def ptr_range(self) -> int:
        return 0


@contextlib.contextmanager
def _pretending(target: Gpu) -> Iterator[Any]:
    """Triton compiles for `target` within the block. Gives Triton's backend of it."""
    stand_in = _Driver(target)
    driver.set_active(stand_in)
    try:
        yield make_backend(stand_in.get_current_target())
    finally:
        if torch.cuda.is_available():  # else there is none to go back to
            driver.reset_active()


def _function(launch: Launch) -> Any:
    """The kernel itself.

    Raises:
        RuntimeError: Triton interprets kernels in this process.
    """
    kernel = getattr(importlib.import_module(launch.module), launch.function)
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise RuntimeError(f"{launch.name} cannot be compiled here: unset TRITON_INTERPRET")
    return kernel


def _warm(kernel: Any, launch: Launch) -> None:
    arguments = [_Mock(each) if isinstance(each, Pointer) else each for each in launch.arguments]
    kernel.warmup(*arguments, grid=(1,), **dict(launch.constants))


def _place(path: Path, content: bytes) -> None:
    """At once: another process of this pod may read it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)


def _text(launch: Launch) -> str:
    """The variant, for people: dtypes, then constants."""
    dtypes = dict.fromkeys(
        str(each.dtype).removeprefix("torch.")
        for each in launch.arguments
        if isinstance(each, Pointer)
    )
    constants = [f"{name}={_word(value)}" for name, value in launch.constants]
    return " ".join([*dtypes, *constants])


def _word(value: Any) -> str:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else str(value)
