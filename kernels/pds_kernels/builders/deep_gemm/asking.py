"""Run as a process of its own, beside `stand_in.cpp`: which kernel would each call launch?

    python -m pds_kernels.builders.deep_gemm.asking <file of calls> <file of answers>

`planning` starts it and explains both files.
"""

import ctypes
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from pds_kernels.fp8_gemm import Gemm, Spec, arguments, call

_CUDA = 2
_DTYPES = {"int32": (0, 32), "float32": (2, 32), "bfloat16": (4, 16), "float8_e4m3fn": (10, 8)}
"""Code and bits, as DLPack has them (dlpack.h, DLDataTypeCode)."""
_ADDRESS = 1 << 40
"""Where tensors claim to lie. Nobody reads there."""


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("index", ctypes.c_int32))


class _DType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


class Absent:
    """A tensor on the GPU that is not there. It must outlive every view of it."""

    def __init__(self, spec: Spec) -> None:
        row = ctypes.c_int64 * len(spec.shape)
        self._shape, self._strides = row(*spec.shape), row(*spec.strides)
        dtype = _DType(*_DTYPES[spec.dtype], 1)
        device, rank = _Device(_CUDA, 0), len(spec.shape)
        self._tensor = _Tensor(
            _ADDRESS, device, rank, dtype, self._shape, self._strides, 0, None, None
        )

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CUDA, 0

    def __dlpack__(self, **_: object) -> Any:
        make = ctypes.pythonapi.PyCapsule_New
        make.restype = ctypes.py_object
        make.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return make(ctypes.addressof(self._tensor), b"dltensor", None)


def main(calls: Path, answers: Path) -> None:
    deep_gemm: Any = importlib.import_module("deep_gemm")
    gpu = ctypes.CDLL(None)
    gpu.pds_last_cubin.restype = ctypes.c_char_p
    found, held = [], []
    for line in calls.read_text().splitlines():
        gemm = Gemm(**json.loads(line))
        held.append([Absent(each) for each in arguments(gemm)])
        gpu.pds_forget()
        try:
            call(deep_gemm, gemm, held[-1])
        except RuntimeError as error:
            found.append({"error": str(error)})
            continue
        found.append(
            {
                "cubin": gpu.pds_last_cubin().decode(),
                "shared": gpu.pds_last_shared(),
                "threads": gpu.pds_last_threads(),
            }
        )
    answers.write_text("".join(json.dumps(each) + "\n" for each in found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
