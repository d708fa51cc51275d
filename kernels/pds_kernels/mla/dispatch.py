"""The one place that knows which kernels there are, and which of them a process runs."""

from torch import Tensor

from pds_kernels import choosing, on_triton
from pds_kernels.mla import cpu, reference
from pds_kernels.mla.plan import Geometry, Heads, Prepare

Kernel = choosing.Kernel[Geometry, Prepare]
KERNELS: tuple[Kernel, ...] = (
    choosing.triton("pds_kernels.mla.triton"),
    Kernel("cpu", serves=cpu.serves, make=cpu.make),
    Kernel("reference", serves=choosing.always, make=reference.make),
)
"""The best first. The last one serves everything."""


def choose(geometry: Geometry) -> Kernel:
    """The first kernel that serves `geometry`."""
    return choosing.first(KERNELS, geometry)


def packed(heads: Heads, w_uk: Tensor, w_uv: Tensor) -> tuple[Tensor, Tensor]:
    """What `plan.Attend` takes as w_uk and w_uv: in the order in which the kernel for such heads
    reads them, once at load, or as they are."""
    if cpu.packs(heads) and not on_triton.runs_on(heads.device):
        return cpu.pack(heads, w_uk, w_uv)
    return w_uk.to(heads.dtype).contiguous(), w_uv.to(heads.dtype).contiguous()
