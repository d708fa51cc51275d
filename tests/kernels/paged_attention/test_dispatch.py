"""Which kernel a process runs."""

from dataclasses import replace

import pytest
import torch
from pds_kernels.paged_attention import Geometry, Kernel, Prepare, choose, dispatch
from pds_kernels.paged_attention.dispatch import KERNELS

GEOMETRY = Geometry(
    heads=8,
    kv_heads=2,
    head_dim=128,
    page_size=16,
    dtype=torch.bfloat16,
    kv_dtype=torch.bfloat16,
    device=torch.device("cpu"),
)


def unused(geometry: Geometry) -> Prepare:
    raise AssertionError(f"nothing is made for {geometry} here")


def test_the_first_that_serves_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = Kernel("fast", serves=lambda asked: asked.device.type == "cuda", make=unused)
    wide = Kernel("wide", serves=lambda asked: asked.head_dim > 64, make=unused)
    monkeypatch.setattr(dispatch, "KERNELS", (fast, wide, KERNELS[-1]))
    assert choose(replace(GEOMETRY, device=torch.device("cuda"))).name == "fast"
    assert choose(GEOMETRY).name == "wide"
    assert choose(replace(GEOMETRY, head_dim=64)) is KERNELS[-1]


def test_the_last_one_serves_everything() -> None:
    odd = Geometry(1, 1, 3, 1, torch.float64, torch.float16, torch.device("meta"))
    assert KERNELS[-1].serves(odd)


def test_names_are_one_each() -> None:
    assert len({kernel.name for kernel in KERNELS}) == len(KERNELS)
