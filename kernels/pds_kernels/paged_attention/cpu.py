"""Attention over paged keys and values on CPUs; cpu.cpp says how it is computed."""

import ctypes
import weakref

import torch
from torch import Tensor

from pds_kernels import cpu
from pds_kernels.paged_attention.plan import Attend, Geometry, check
from pds_kernels.plan import AttentionPlan

LIBRARY = cpu.of_room(__file__)
_DTYPES = (torch.float32, torch.bfloat16)
_KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Planning(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("work", ctypes.c_void_p),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("window", ctypes.c_int64),
    )


class _Arguments(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("work", ctypes.c_void_p),
        ("q", ctypes.c_void_p),
        ("q_token", ctypes.c_int64),
        ("q_head", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("key_page", ctypes.c_int64),
        ("key_head", ctypes.c_int64),
        ("key_place", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("value_page", ctypes.c_int64),
        ("value_head", ctypes.c_int64),
        ("value_place", ctypes.c_int64),
        ("sinks", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_token", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("page_size", ctypes.c_int64),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("softcap", ctypes.c_double),
    )


class _Writing(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("k", ctypes.c_void_p),
        ("k_token", ctypes.c_int64),
        ("k_head", ctypes.c_int64),
        ("v", ctypes.c_void_p),
        ("v_token", ctypes.c_int64),
        ("v_head", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("key_page", ctypes.c_int64),
        ("key_head", ctypes.c_int64),
        ("key_place", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("value_page", ctypes.c_int64),
        ("value_head", ctypes.c_int64),
        ("value_place", ctypes.c_int64),
        ("kv_heads", ctypes.c_int64),
        ("dim", ctypes.c_int64),
        ("page_size", ctypes.c_int64),
    )


def serves(geometry: Geometry) -> bool:
    """Any shape, window, softcap and sinks."""
    served = geometry.dtype in _DTYPES and geometry.kv_dtype in _KV_DTYPES
    return served and geometry.device.type == "cpu" and cpu.provided(LIBRARY.name)


def make(geometry: Geometry) -> "OnCpu":
    """Look up what computes in these dtypes."""
    return OnCpu(geometry)


class OnCpu:
    """plan.Prepare; also the operations of a program.

    `planning` comes first in each step; after it `attending` once for each layer of this geometry,
    whose keys and values are written by then.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        library = cpu.loaded(LIBRARY.name)
        library.pds_attention_work.restype = ctypes.c_void_p
        library.pds_attention_work_end.argtypes = (ctypes.c_void_p,)
        self._work = library.pds_attention_work()
        weakref.finalize(self, library.pds_attention_work_end, self._work)
        dtypes = f"{cpu.NAMES[geometry.dtype]}_{cpu.NAMES[geometry.kv_dtype]}"
        self._plan = cpu.function(LIBRARY.name, "pds_attention_plan")
        self._attend = cpu.function(LIBRARY.name, f"pds_attend_{dtypes}")
        self._write = cpu.function(LIBRARY.name, f"pds_write_{dtypes}")

    def __call__(self, plan: AttentionPlan) -> Attend:
        return _Attention(self, plan)

    def planning(self) -> cpu.Op:
        """Cut the step into tasks."""
        arguments = cpu.fields(
            _Planning,
            work=self._work,
            heads=self.geometry.heads,
            kv_heads=self.geometry.kv_heads,
            dim=self.geometry.head_dim,
            window=self.geometry.window or 0,
        )
        arguments.kernel = self  # the work lives as long as the kernel does
        return cpu.Op(self._plan, arguments)

    def writing(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> cpu.Op:
        """Write k and v [T, kv_heads, D] into their pages, but for those of padding."""
        arguments = cpu.fields(
            _Writing,
            k=k,
            k_token=k.stride(0),
            k_head=k.stride(1),
            v=v,
            v_token=v.stride(0),
            v_head=v.stride(1),
            keys=keys,
            values=values,
            **_strides(keys, values),
            kv_heads=self.geometry.kv_heads,
            dim=self.geometry.head_dim,
            page_size=self.geometry.page_size,
        )
        return cpu.Op(self._write, arguments)

    def attending(
        self, q: Tensor, keys: Tensor, values: Tensor, sinks: Tensor | None, out: Tensor
    ) -> cpu.Op:
        """Attention of one layer into out [T, heads·D]; q, keys, values and sinks as plan.Attend
        has them. Rows of padding become zero.

        Raises:
            ValueError: the geometry has sinks and none are given, or the other way round.
        """
        geometry = self.geometry
        check(geometry, sinks)
        arguments = cpu.fields(
            _Arguments,
            work=self._work,
            q=q,
            q_token=q.stride(0),
            q_head=q.stride(1),
            keys=keys,
            values=values,
            **_strides(keys, values),
            sinks=None if sinks is None else sinks.float().contiguous(),
            out=out,
            out_token=out.stride(0),
            heads=geometry.heads,
            kv_heads=geometry.kv_heads,
            dim=geometry.head_dim,
            page_size=geometry.page_size,
            window=geometry.window or 0,
            scale=geometry.head_dim**-0.5 if geometry.scale is None else geometry.scale,
            softcap=geometry.softcap or 0,
        )
        arguments.kernel = self
        return cpu.Op(self._attend, arguments)


def _strides(keys: Tensor, values: Tensor) -> dict[str, int]:
    """Of pages, heads and places."""
    return {
        f"{name}_{of}": stride
        for name, pages in (("key", keys), ("value", values))
        for of, stride in zip(("page", "head", "place"), pages.stride(), strict=False)
    }


class _Attention:
    """plan.Attend for one step."""

    def __init__(self, kernel: OnCpu, plan: AttentionPlan) -> None:
        self._kernel = kernel
        self._plan = plan

    def __call__(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        keys: Tensor,
        values: Tensor,
        sinks: Tensor | None = None,
    ) -> Tensor:
        kernel = self._kernel
        out = torch.empty(len(q), q.shape[1] * q.shape[2], dtype=q.dtype)
        ops = [kernel.planning()]
        if k is not None and v is not None:
            ops.append(kernel.writing(k, v, keys, values))
        ops.append(kernel.attending(q, keys, values, sinks, out))
        cpu.Program(ops).run(cpu.Step.of(len(q), self._plan))
        return out
