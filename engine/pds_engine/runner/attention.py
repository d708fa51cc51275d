"""The attention kernels of a rank's layers: chosen once, prepared once a step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pds_kernels import mla, paged_attention, rope
from pds_kernels.plan import AttentionPlan, Repeats
from torch import Tensor

from pds_engine.models.decoder import Attend, Attends, Decoder
from pds_engine.spec import GqaSpec, MlaSpec


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
        grouped = common | {"kv_heads": len(decoder.part.kv_heads)}
        self._layers = [layer.attention for layer in decoder.layers]
        self._kinds = {
            spec: _latent(spec, common)
            if isinstance(spec, MlaSpec)
            else _grouped(spec, decoder.spec.norm_eps, grouped | {"head_dim": spec.head_dim})
            for spec in dict.fromkeys(self._layers)
        }
        self.kernels = ", ".join(sorted({kind.name for kind in self._kinds.values()}))

    @property
    def kinds(self) -> list["Kind"]:
        """Of each layer."""
        return [self._kinds[spec] for spec in self._layers]

    @property
    def unlike(self) -> list["Kind"]:
        """Each kind that there is."""
        return list(self._kinds.values())

    @property
    def repeats(self) -> bool:
        """Whether all kernels can attend in steps that are replayed."""
        return all(isinstance(kind.attend, Repeats) for kind in self._kinds.values())

    def repeating(self, plan: AttentionPlan) -> "Repeating":
        """For decode steps that are replayed, on the tensors of `plan` (Repeats.repeated).

        Raises:
            TypeError: a kernel cannot, and `repeats` is false.
        """
        ready: dict[GqaSpec | MlaSpec, Attend] = {}
        fills: list[Callable[[AttentionPlan], None]] = []
        for spec, kind in self._kinds.items():
            if not isinstance(kind.attend, Repeats):
                raise TypeError(f"attention by {kind.name} cannot be replayed")
            repeated = kind.attend.repeated(plan)
            fills.append(repeated.fill)
            ready[spec] = Attend(repeated.attend, plan.write_slots, kind.rotate)
        return Repeating([ready[spec] for spec in self._layers], tuple(fills))

    def prepare(self, plan: AttentionPlan) -> Attends:
        """Each layer's attention, for this step."""
        ready = {
            spec: Attend(kind.attend(plan), plan.write_slots, kind.rotate)
            for spec, kind in self._kinds.items()
        }
        return [ready[spec] for spec in self._layers]


@dataclass(frozen=True, slots=True)
class Repeating:
    """Each layer's attention, for steps that are replayed."""

    attends: Attends
    fills: tuple[Callable[[AttentionPlan], None], ...]
    """Of each kind of layers."""

    def fill(self, plan: AttentionPlan) -> None:
        """The next replay is of this step."""
        for fill in self.fills:
            fill(plan)


@dataclass(frozen=True, slots=True)
class Kind:
    """The kernels of layers that are alike."""

    name: str
    """Of what attends."""
    attend: Callable[[AttentionPlan], Callable[..., Tensor]]
    """Prepares a step."""
    rotate: rope.RotateAndWrite | None = None
    """None: a layer rotates by itself, and attention writes its keys and values."""


def _latent(spec: MlaSpec, common: dict[str, Any]) -> Kind:
    geometry = mla.Geometry(
        nope_dim=spec.nope_dim,
        rope_dim=spec.rope_dim,
        value_dim=spec.value_dim,
        kv_rank=spec.kv_rank,
        scale=spec.scale,
        **common,
    )
    kernel = mla.choose(geometry)
    return Kind(kernel.name, kernel.make(geometry))


def _grouped(spec: GqaSpec, norm_eps: float, common: dict[str, Any]) -> Kind:
    geometry = paged_attention.Geometry(
        scale=None if spec.scale == spec.head_dim**-0.5 else spec.scale,
        window=spec.window,
        softcap=spec.softcap,
        sinks=spec.sinks,
        **common,
    )
    kernel = paged_attention.choose(geometry)
    return Kind(kernel.name, kernel.make(geometry), _rotation(spec, norm_eps, common))


def _rotation(spec: GqaSpec, norm_eps: float, common: dict[str, Any]) -> rope.RotateAndWrite | None:
    """What rotates and writes in one pass. None where all heads are normalised together before, or
    where no kernel does: the definition takes as many passes as the layer's own operations, which
    may be compiled."""
    if spec.qk_norm == "whole":
        return None
    geometry = rope.Geometry(
        rotated=spec.rope.dims,
        norm_eps=norm_eps if spec.qk_norm == "head" else None,
        **common,
    )
    kernel = rope.choose(geometry)
    return None if kernel.name == "reference" else kernel.make(geometry)
