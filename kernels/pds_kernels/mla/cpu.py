"""Multi-head latent attention on CPUs; cpu.cpp says how it is computed."""

import ctypes
import weakref
from functools import partial

import torch
from torch import Tensor

from pds_kernels import cpu
from pds_kernels.mla.plan import Attend, Geometry, Heads
from pds_kernels.plan import AttentionPlan

LIBRARY = cpu.of_room(__file__)
_SERVED = {
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.bfloat16, torch.bfloat16),
}
"""Dtypes of queries and of weights."""
_STORED = (torch.float32, torch.bfloat16, torch.float16)
"""Of pages, by cpu.cpp's numbers."""


class _Arguments(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("work", ctypes.c_void_p),
        ("q", ctypes.c_void_p),
        ("q_token", ctypes.c_int64),
        ("q_head", ctypes.c_int64),
        ("latent", ctypes.c_void_p),
        ("latent_token", ctypes.c_int64),
        ("pages", ctypes.c_void_p),
        ("page", ctypes.c_int64),
        ("place", ctypes.c_int64),
        ("stored", ctypes.c_int64),
        ("w_uk", ctypes.c_void_p),
        ("w_uv", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("out_token", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("nope", ctypes.c_int64),
        ("rope", ctypes.c_int64),
        ("value", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("page_size", ctypes.c_int64),
        ("scale", ctypes.c_double),
    )


class _Packing(ctypes.Structure):
    """cpu.cpp's."""

    _fields_ = (
        ("w_uk", ctypes.c_void_p),
        ("w_uv", ctypes.c_void_p),
        ("heads", ctypes.c_int64),
        ("nope", ctypes.c_int64),
        ("value", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("to_uk", ctypes.c_void_p),
        ("to_uv", ctypes.c_void_p),
    )


def packs(heads: Heads) -> bool:
    """Whether it computes with such heads, in any pages."""
    served = (heads.dtype, heads.stored) in _SERVED
    return served and heads.device.type == "cpu" and cpu.provided(LIBRARY.name)


def pack(heads: Heads, w_uk: Tensor, w_uv: Tensor) -> tuple[Tensor, Tensor]:
    """w_uk [heads, nope_dim, kv_rank] and w_uv [heads, value_dim, kv_rank] in the order in which
    they are read: [heads, numbers] each."""
    return _Packer(heads.stored)(w_uk, w_uv)


class _Packer:
    """Packs weights in a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        size = dtype.itemsize
        self._pack = cpu.function(LIBRARY.name, f"pds_latent_pack_{size}")
        count = cpu.loaded(LIBRARY.name).pds_latent_packed_size
        count.argtypes, count.restype = (ctypes.c_int64,) * 3, ctypes.c_int64
        self._numbers = partial(count, size)

    def __call__(self, w_uk: Tensor, w_uv: Tensor) -> tuple[Tensor, Tensor]:
        (count, nope, rank), value = w_uk.shape, w_uv.shape[1]
        both = self._numbers(rank, nope) + self._numbers(nope, rank)
        to_uk = torch.empty(count, both, dtype=self._dtype)
        to_uv = torch.empty(count, self._numbers(value, rank), dtype=self._dtype)
        arguments = cpu.fields(
            _Packing,
            w_uk=w_uk.to(self._dtype).contiguous(),
            w_uv=w_uv.to(self._dtype).contiguous(),
            heads=count,
            nope=nope,
            value=value,
            rank=rank,
            to_uk=to_uk,
            to_uv=to_uv,
        )
        cpu.run(cpu.Op(self._pack, arguments), 0)
        return to_uk, to_uv


def serves(geometry: Geometry) -> bool:
    """Any shape, with weights of `geometry.dtype` or packed."""
    heads = Heads(geometry.dtype, geometry.dtype, geometry.device)
    return geometry.kv_dtype in _STORED and packs(heads)


def make(geometry: Geometry) -> "OnCpu":
    """Look up what computes in these dtypes."""
    return OnCpu(geometry)


class OnCpu:
    """plan.Prepare; also the operations of a program.

    `planning` comes first in each step; after it `attending` once for each layer of this geometry.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        library = cpu.loaded(LIBRARY.name)
        library.pds_latent_work.restype = ctypes.c_void_p
        library.pds_latent_work_end.argtypes = (ctypes.c_void_p,)
        self._work = library.pds_latent_work()
        weakref.finalize(self, library.pds_latent_work_end, self._work)
        x = cpu.NAMES[geometry.dtype]
        self._plan = cpu.function(LIBRARY.name, "pds_latent_plan")
        self._write = cpu.function(LIBRARY.name, f"pds_latent_write_{x}")
        self._steps = {
            stored: [
                cpu.function(LIBRARY.name, f"pds_latent_{step}_{x}_{cpu.NAMES[stored]}")
                for step in ("absorb", "attend", "values")
            ]
            for dtype, stored in _SERVED
            if dtype == geometry.dtype
        }
        self._packers = {stored: _Packer(stored) for stored in self._steps}

    def __call__(self, plan: AttentionPlan) -> Attend:
        return _Attention(self, plan)

    def pack(self, w_uk: Tensor, w_uv: Tensor) -> tuple[Tensor, Tensor]:
        """`pack`, in the dtype of w_uk."""
        return self._packers[w_uk.dtype](w_uk, w_uv)

    def planning(self) -> cpu.Op:
        """Cut the step into tasks."""
        geometry = self.geometry
        arguments = cpu.fields(_Arguments, work=self._work, **_sizes(geometry))
        arguments.kernel = self  # the work lives as long as the kernel does
        return cpu.Op(self._plan, arguments)

    def attending(
        self, q: Tensor, latent: Tensor, pages: Tensor, packed: tuple[Tensor, Tensor], out: Tensor
    ) -> list[cpu.Op]:
        """Attention of one layer into out [T, heads·value_dim]: q, latent and pages as plan.Attend
        has them, `packed` as `pack` gives it. Rows of padding become zero; their latents are not
        written."""
        arguments = cpu.fields(
            _Arguments,
            work=self._work,
            q=q,
            q_token=q.stride(0),
            q_head=q.stride(1),
            latent=latent,
            latent_token=latent.stride(0),
            pages=pages,
            page=pages.stride(0),
            place=pages.stride(1),
            stored=_STORED.index(pages.dtype),
            w_uk=packed[0],
            w_uv=packed[1],
            out=out,
            out_token=out.stride(0),
            **_sizes(self.geometry),
        )
        arguments.kernel = self
        return [cpu.Op(step, arguments) for step in (self._write, *self._steps[packed[0].dtype])]


def _sizes(geometry: Geometry) -> dict[str, float]:
    return {
        "heads": geometry.heads,
        "nope": geometry.nope_dim,
        "rope": geometry.rope_dim,
        "value": geometry.value_dim,
        "rank": geometry.kv_rank,
        "page_size": geometry.page_size,
        "scale": geometry.scale,
    }


class _Attention:
    """plan.Attend for one step. It takes plain weights, too, and packs them for each call."""

    def __init__(self, kernel: OnCpu, plan: AttentionPlan) -> None:
        self._kernel = kernel
        self._plan = plan

    def __call__(
        self, q: Tensor, latent: Tensor, pages: Tensor, w_uk: Tensor, w_uv: Tensor
    ) -> Tensor:
        kernel, geometry = self._kernel, self._kernel.geometry
        packed = (w_uk, w_uv) if w_uk.dim() == 2 else kernel.pack(w_uk, w_uv)
        out = torch.empty(len(q), geometry.heads * geometry.value_dim, dtype=q.dtype)
        ops = [kernel.planning(), *kernel.attending(q, latent, pages, packed, out)]
        cpu.Program(ops).run(cpu.Step.of(len(q), self._plan))
        return out
