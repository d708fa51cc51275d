"""Which kernels DeepGEMM would launch on a GPU that is not there.

DeepGEMM itself is asked, in a process of its own: it chooses by its own heuristics, writes its own
source and names it by its own key. In that process `stand_in.cpp` plays the GPU, and a program that
only notes its arguments plays nvcc. No kernel is compiled, and no GPU is touched, be there one.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pds_kernels.builders.deep_gemm import compilers
from pds_kernels.builders.deep_gemm.kernel import DeepGemmKernel
from pds_kernels.builders.deep_gemm.toolchain import Toolchain, find
from pds_kernels.fp8_gemm import Gemm
from pds_kernels.targets import Gpu

_PACKAGE = "sgl-deep-gemm"
_ARCH = 90
"""On sm_100 scales have another layout (gemm.py), and other kernels want them."""
_TILE = 16
"""Rows of the smallest tile, of which the others' are multiples."""
_COMMANDS = 4
"""Words of nvcc's that come before its flags: source, -cubin, -o, file."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A call and the kernel it launches. Many calls share one."""

    gemm: Gemm
    kernel: DeepGemmKernel
    shared: int
    """Bytes of shared memory that this call launches it with."""


def kernels(planned: Iterable[Planned]) -> tuple[DeepGemmKernel, ...]:
    """Those of `planned`, each once."""
    return tuple(dict.fromkeys(each.kernel for each in planned))


def covering(gemms: Iterable[Gemm], most: int) -> tuple[Gemm, ...]:
    """Dense calls that launch all kernels of `gemms`' weights for 1 … `most` tokens.

    They are multiples of the smallest tile. DeepGEMM chooses by the number of tiles, so what lies
    between has the kernel of the next multiple.
    """
    sizes = dict.fromkeys((gemm.n, gemm.k) for gemm in gemms)
    counts = range(_TILE, most + _TILE, _TILE)
    return tuple(Gemm(m, n, k) for n, k in sizes for m in counts)


def plan(
    gemms: Sequence[Gemm], target: Gpu, toolchain: Toolchain | None = None
) -> tuple[Planned, ...]:
    """The kernel of each of `gemms` on `target`, compiled by `toolchain`, or by what is here.

    It takes 5 s of CPU, most of it the import of torch, and 0.2 ms a call: all numbers of tokens
    that may come can be planned, and only then is no kernel missing while serving.

    Raises:
        ValueError: kernels for `target` are not planned here.
        RuntimeError: DeepGEMM, nvcc or g++ is missing, or DeepGEMM refuses a call.
    """
    if target.arch != _ARCH:
        raise ValueError(f"DeepGEMM's kernels are planned for sm_{_ARCH}, not for {target}")
    toolchain = toolchain or find()
    library = _library()
    with tempfile.TemporaryDirectory(prefix="pds-deep-gemm-") as made:
        scratch = Path(made)
        nvcc = scratch / "nvcc"
        compilers.noting(nvcc, toolchain)
        answers = ask(gemms, target, scratch, environment(scratch, nvcc, toolchain))
        launched = {
            file: _kernel(Path(file), library, toolchain, target)
            for file in dict.fromkeys(answer["cubin"] for answer in answers)
        }
        return tuple(
            Planned(gemm, launched[answer["cubin"]], answer["shared"])
            for gemm, answer in zip(gemms, answers, strict=True)
        )


def environment(cache: Path, nvcc: Path, toolchain: Toolchain) -> dict[str, str]:
    """What a process needs so that its DeepGEMM looks below `cache`, and compiles by `nvcc`."""
    return {
        "DG_JIT_CACHE_DIR": str(cache),
        "DG_JIT_NVCC_COMPILER": str(nvcc),
        "DG_JIT_USE_NVRTC": "0",
        "CUDA_HOME": str(toolchain.home),
    }


def look_up(cache: Path) -> None:
    """DeepGEMM, which this process has not loaded yet, takes its kernels from `cache`. It cannot
    compile: a call whose kernel is not there is an error.

    Raises:
        RuntimeError: it is loaded already, or nvcc, whose version is in its keys, is not here.
    """
    if "deep_gemm" in sys.modules:
        raise RuntimeError("DeepGEMM was loaded before its kernels were installed")
    toolchain, nvcc = find(), cache / "nvcc"
    cache.mkdir(parents=True, exist_ok=True)
    compilers.refusing(nvcc, toolchain)
    os.environ.update(environment(cache, nvcc, toolchain))


def ask(
    gemms: Sequence[Gemm], target: Gpu, scratch: Path, settings: Mapping[str, str]
) -> list[dict[str, Any]]:
    """For each of `gemms`, the file of the kernel that DeepGEMM launched ("cubin"), its bytes of
    dynamic shared memory ("shared") and its threads, in a fresh process with `settings`.

    Raises:
        RuntimeError: as `plan`.
    """
    calls, answers = scratch / "calls", scratch / "answers"
    calls.write_text("".join(json.dumps(asdict(gemm)) + "\n" for gemm in gemms))
    stand_in = _stand_in(scratch, Path(settings["CUDA_HOME"]))
    surroundings = {
        **os.environ,
        **settings,
        "LD_PRELOAD": str(stand_in),
        "PDS_STAND_IN_ARCH": str(target.arch),
        "PDS_STAND_IN_SMS": str(target.sms),
        # Else DeepGEMM allocates a workspace on the device.
        "DG_USE_TEMP_CUBLASLT_WORKSPACE": "1",
    }
    module = f"{__package__}.asking"
    words = [sys.executable, "-m", module, str(calls), str(answers)]
    done = subprocess.run(words, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"DeepGEMM does not run here: {done.stderr.strip()[-2000:]}")
    found = [json.loads(line) for line in answers.read_text().splitlines()]
    for gemm, answer in zip(gemms, found, strict=True):
        if not answer.get("cubin"):
            said = answer.get("error", "it launched nothing")
            raise RuntimeError(f"DeepGEMM refuses {gemm}: {said}{_hint(said)}")
    return found


def _hint(said: str) -> str:
    if "dim == 2" not in said:
        return ""
    # It reads tensors at other offsets than this torch has, so that no shape is what it was.
    return f" ({_PACKAGE} was compiled for another torch: install what constraints.txt pins)"


def _kernel(noted: Path, library: str, toolchain: Toolchain, target: Gpu) -> DeepGemmKernel:
    """From an entry of the cache in which nvcc's words lie in the kernel's place."""
    entry = noted.parent.name
    return DeepGemmKernel(
        function=entry.split(".")[1],
        source=(noted.parent / "kernel.cu").read_text(),
        flags=tuple(noted.read_text().splitlines()[_COMMANDS:]),
        entry=entry,
        library=library,
        toolchain=toolchain,
        target=target,
    )


def _library() -> str:
    try:
        return importlib.metadata.version(_PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise RuntimeError(f"{_PACKAGE} is missing: pip install 'pdserving[gpu]'") from error


def _stand_in(scratch: Path, home: Path) -> Path:
    """The library that plays the GPU, under the name by which the driver is opened."""
    library = scratch / "libcuda.so.1"
    source = Path(__file__).with_name("stand_in.cpp")
    words = ["g++", "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{home / 'include'}"]
    words += [f"-Wl,-soname,{library.name}", str(source), "-o", str(library)]
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except OSError as error:
        raise RuntimeError(f"g++ does not run: {error}") from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"g++ refuses {source.name}: {error.stderr.strip()}") from error
    return library
