"""The attention kernels of a rank's layers: chosen once, prepared once a step."""

from collections.abc import Callable
from typing import Any

from pds_kernels import mla, paged_attention
from pds_kernels.plan import AttentionPlan
from torch import Tensor

from pds_engine.models.decoder import Attends, Decoder
from pds_engine.spec import GqaSpec, MlaSpec

_Prepare = Callable[[AttentionPlan], Callable[..., Tensor]]


class Attention:
    """Layers whose attention is alike share one preparation of a step's plan."""

    def __init__(self, decoder: Decoder, page_size: int, pages: Tensor) -> None:
        """`pages`: of any layer; it says in what they are kept, and where."""
        common: dict[str, Any] = {
            "heads": len(decoder.part.heads),
            "page_size": page_size,
            "dtype": decoder.dtype,
            "kv_dtype": pages.dtype,
            "device": pages.device,
        }
        self._layers = [layer.attention for layer in decoder.layers]
        names: set[str] = set()
        self._kinds: dict[GqaSpec | MlaSpec, _Prepare] = {}
        for spec in self._layers:
            if spec not in self._kinds:
                name, self._kinds[spec] = _kernel(spec, len(decoder.part.kv_heads), common)
                names.add(name)
        self.kernels = ", ".join(sorted(names))

    def prepare(self, plan: AttentionPlan) -> Attends:
        """Each layer's attention, for this step."""
        ready = {spec: prepare(plan) for spec, prepare in self._kinds.items()}
        return [ready[spec] for spec in self._layers]


def _kernel(spec: GqaSpec | MlaSpec, kv_heads: int, common: dict[str, Any]) -> tuple[str, _Prepare]:
    """The name of the kernel for such layers, and the kernel."""
    if isinstance(spec, MlaSpec):
        latent = mla.Geometry(
            nope_dim=spec.nope_dim,
            rope_dim=spec.rope_dim,
            value_dim=spec.value_dim,
            kv_rank=spec.kv_rank,
            scale=spec.scale,
            **common,
        )
        mla_kernel = mla.choose(latent)
        return mla_kernel.name, mla_kernel.make(latent)
    geometry = paged_attention.Geometry(
        kv_heads=kv_heads,
        head_dim=spec.head_dim,
        scale=None if spec.scale == spec.head_dim**-0.5 else spec.scale,
        window=spec.window,
        softcap=spec.softcap,
        sinks=spec.sinks,
        **common,
    )
    kernel = paged_attention.choose(geometry)
    return kernel.name, kernel.make(geometry)
