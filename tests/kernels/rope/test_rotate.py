"""Rotation and writing against the definition: parts of heads, edges of pages, NaN in pages."""

from dataclasses import replace

import pytest
import torch
from ahead import Compile
from pds_kernels.launching import recording
from pds_kernels.rope import Geometry, Kernel, choose
from pds_kernels.rope.dispatch import KERNELS
from pds_kernels.rope.reference import rotate_and_write
from pds_kernels.rope.tuning import Tile, tile
from serving_kernels import served
from torch import Tensor

PAGE, PAGES, LAYERS = 4, 6, 3
NULL_SLOT = (PAGES - 1) * PAGE
SLOTS = [0, 3, 4, 7, 13, NULL_SLOT, NULL_SLOT]
"""The first and the last place of pages, one within, and two tokens of padding."""


def geometry(device: torch.device) -> Geometry:
    return Geometry(3, 2, 16, 16, PAGE, torch.float32, torch.float32, device)


def layer_of(pool: Tensor) -> tuple[Tensor, Tensor]:
    """Views of one layer of a pool [pages, layers, 2, kv_heads, page_size, D], as kv.pool has."""
    return pool[:, 1, 0], pool[:, 1, 1]


class Step:
    """A step's tensors, the same for each kernel. What must not be read is NaN."""

    def __init__(self, wanted: Geometry, tokens: int) -> None:
        torch.manual_seed(tokens)
        device = wanted.device
        every = wanted.heads + 2 * wanted.kv_heads
        width = every * wanted.head_dim
        wide = torch.full((tokens, width + 3), float("nan"))
        wide[:, :width] = torch.randn(tokens, width)
        wide[5:, :width] = 1  # padding: all that have one slot are alike
        angles = torch.rand(tokens, wanted.rotated // 2) * 6
        angles[5:] = 1
        norm = 1 + torch.rand(every - wanted.kv_heads, wanted.head_dim)
        self.wanted = wanted
        self.qkv = wide.to(device, wanted.dtype)[:, :width]
        self.rows = torch.cat((angles.cos(), angles.sin()), 1).to(device)
        self.norm = None if wanted.norm_eps is None else norm.to(device, wanted.dtype)
        self.slots = torch.tensor(SLOTS[:tokens], dtype=torch.int64, device=device)
        shape = (PAGES, LAYERS, 2, wanted.kv_heads, PAGE, wanted.head_dim)
        self.pool = torch.full(shape, float("nan"), dtype=wanted.kv_dtype, device=device)

    def run(self, kernel: Kernel) -> tuple[Tensor, Tensor]:
        """The queries, and all pages."""
        pool = self.pool.clone()
        keys, values = layer_of(pool)
        run = kernel.make(self.wanted)
        return run(self.qkv, self.rows, self.norm, keys, values, self.slots), pool

    def defined(self) -> tuple[Tensor, Tensor]:
        pool = self.pool.clone()
        keys, values = layer_of(pool)
        inputs = (self.qkv, self.rows, self.norm, keys, values, self.slots)
        return rotate_and_write(self.wanted, *inputs), pool


@pytest.mark.parametrize("norm_eps", [None, 1e-6])
@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rotated"),
    [
        (1, 1, 2, 2),
        (3, 2, 16, 16),
        (5, 1, 12, 6),  # neither is a power of two
        (2, 2, 40, 24),
        (9, 3, 128, 128),  # more heads than a program has
    ],
)
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_against_the_definition(
    kernel: Kernel,
    device: str,
    heads: int,
    kv_heads: int,
    dim: int,
    rotated: int,
    tokens: int,
    norm_eps: float | None,
) -> None:
    where = torch.device(device)
    wanted = Geometry(
        heads, kv_heads, dim, rotated, PAGE, torch.float32, torch.float32, where, norm_eps
    )
    step = Step(wanted, tokens)
    q, pool = step.run(kernel)
    assert q.shape == (tokens, heads, dim)
    torch.testing.assert_close((q, pool), step.defined(), equal_nan=True)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_only_the_tokens_places_are_written(kernel: Kernel, device: str) -> None:
    step = Step(geometry(torch.device(device)), len(SLOTS))
    _, pool = step.run(kernel)
    assert pool[:, [0, 2]].isnan().all()
    written = pool[:, 1].isfinite().all(-1).all(2).all(1)  # [pages, page_size]
    assert written.flatten().nonzero().flatten().tolist() == sorted(set(SLOTS))
    assert pool[:, 1].isnan().any(-1).any(2).any(1).sum() == PAGES * PAGE - len(set(SLOTS))


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_values_and_what_is_not_rotated_keep_every_bit(kernel: Kernel, device: str) -> None:
    wanted = replace(geometry(torch.device(device)), rotated=6)
    step = Step(wanted, 5)
    q, pool = step.run(kernel)
    by_head = step.qkv.unflatten(1, (7, 16))
    assert torch.equal(q[..., 6:], by_head[:, :3, 6:])
    values = layer_of(pool)[1][step.slots // PAGE, :, step.slots % PAGE]
    assert torch.equal(values, by_head[:, 5:])


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_pages_may_have_another_dtype(kernel: Kernel, device: str) -> None:
    step = Step(replace(geometry(torch.device(device)), kv_dtype=torch.float16), len(SLOTS))
    q, pool = step.run(kernel)
    assert (q.dtype, pool.dtype) == (torch.float32, torch.float16)
    torch.testing.assert_close((q, pool), step.defined(), equal_nan=True)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_norm_in_float32_is_multiplied_before_rounding(kernel: Kernel, device: str) -> None:
    wanted = replace(geometry(torch.device(device)), dtype=torch.bfloat16, norm_eps=1e-6)
    step = Step(wanted, 5)
    step.norm = 1 + torch.rand(5, 16, device=device)
    q, pool = step.run(kernel)
    assert q.dtype == torch.bfloat16
    torch.testing.assert_close((q, pool), step.defined(), rtol=1.6e-2, atol=1e-2, equal_nan=True)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
@pytest.mark.parametrize("norm_eps", [None, 1e-6])
def test_norms_are_given_where_the_geometry_has_them(
    kernel: Kernel, device: str, norm_eps: float | None
) -> None:
    step = Step(replace(geometry(torch.device(device)), norm_eps=norm_eps), 1)
    step.norm = torch.ones(5, 16, device=device) if norm_eps is None else None
    with pytest.raises(ValueError, match="norms are"):
        step.run(kernel)


@pytest.mark.parametrize(
    ("heads", "dim", "dtype", "expected"),
    [
        (3, 2, torch.float32, Tile(4, 1)),
        (48, 128, torch.bfloat16, Tile(8, 2)),
        (48, 128, torch.float32, Tile(8, 4)),
        (80, 64, torch.bfloat16, Tile(16, 2)),
        (24, 256, torch.bfloat16, Tile(4, 2)),
        (3, 1024, torch.bfloat16, Tile(1, 2)),
    ],
)
def test_a_thread_has_a_vector(heads: int, dim: int, dtype: torch.dtype, expected: Tile) -> None:
    assert tile(heads, dim, dtype) == expected


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "rotated", "norm_eps"),
    [(32, 8, 128, 128, None), (32, 4, 128, 128, 1e-6), (32, 32, 96, 72, None)],
    ids=["Llama-3-8B", "Qwen3-30B-A3B", "a part of a head"],
)
def test_compiles_for_sm_90(
    hopper: Compile, heads: int, kv_heads: int, dim: int, rotated: int, norm_eps: float | None
) -> None:
    meta, dtype = torch.device("meta"), torch.bfloat16
    wanted = Geometry(heads, kv_heads, dim, rotated, 16, dtype, dtype, meta, norm_eps)
    every = heads + 2 * kv_heads
    with recording() as launches:
        choose(wanted).make(wanted)(
            torch.empty(3, every * dim, dtype=dtype, device=meta),
            torch.empty(3, rotated, device=meta),
            None
            if norm_eps is None
            else torch.empty(heads + kv_heads, dim, dtype=dtype, device=meta),
            *layer_of(torch.empty(9, 32, 2, kv_heads, 16, dim, dtype=dtype, device=meta)),
            torch.empty(3, dtype=torch.int64, device=meta),
        )
    assert [each.stack for each in hopper(launches)] == [0]
