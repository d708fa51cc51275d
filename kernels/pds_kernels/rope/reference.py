"""Rotation and the writing of pages in plain torch: the definition."""

from functools import partial

import torch
from torch import Tensor

from pds_kernels.rms_norm import rms_norm
from pds_kernels.rope.plan import Geometry, RotateAndWrite, check


def make(geometry: Geometry) -> RotateAndWrite:
    """Nothing is kept from call to call."""
    return partial(rotate_and_write, geometry)


def rotate_and_write(
    geometry: Geometry,
    qkv: Tensor,
    rows: Tensor,
    norm: Tensor | None,
    keys: Tensor,
    values: Tensor,
    write_slots: Tensor,
) -> Tensor:
    """plan.RotateAndWrite, once `geometry` is given."""
    check(geometry, norm)
    both = geometry.heads + geometry.kv_heads
    by_head = qkv.view(len(qkv), both + geometry.kv_heads, geometry.head_dim)
    qk, v = by_head[:, :both], by_head[:, both:]
    if norm is not None and geometry.norm_eps is not None:
        qk = rms_norm(qk, norm, geometry.norm_eps)
    turned = rotate(qk, rows)
    q, k = turned[:, : geometry.heads], turned[:, geometry.heads :]
    pages = write_slots.div(geometry.page_size, rounding_mode="floor")
    places = write_slots % geometry.page_size
    keys[pages, :, places] = k.to(keys.dtype)
    values[pages, :, places] = v.to(values.dtype)
    return q.contiguous()


def rotate(x: Tensor, rows: Tensor) -> Tensor:
    """Rotate pairs (i, i + R/2) of the first R dimensions of each head; the others pass.

    x: [T, heads, D]; rows: [T, R], the table's rows at the tokens' positions. Returns x's dtype.
    """
    rotated = rows.shape[-1]
    cos, sin = rows.unsqueeze(1).chunk(2, dim=-1)
    first, second = x[..., :rotated].float().chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    turned = turned.to(x.dtype)
    if rotated == x.shape[-1]:
        return turned
    return torch.cat((turned, x[..., rotated:]), dim=-1)
