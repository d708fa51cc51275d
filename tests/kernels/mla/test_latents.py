"""Triton's latent attention: pieces and their join, scratch memory, what is compiled."""

from dataclasses import replace

import pytest
import torch
from ahead import Compile, variants
from attention_steps import ALL_PAGES, PAGE, Rows, plan_of, plan_on, repeating, write
from pds_kernels.launching import Launch, recording
from pds_kernels.mla import Geometry, choose
from pds_kernels.mla import reference as definition
from pds_kernels.mla import triton as kernel
from pds_kernels.mla.tuning import Blocks, tuning
from pds_kernels.plan import AttentionPlan
from torch import Tensor

PIECES = Blocks(rows=16, places=16, warps=4, stages=1, resident=1, least=16)
"""Contexts are cut to single blocks, as a few long ones are on a GPU."""
MANY = 10_000
DEEPSEEK_V3 = Geometry(
    heads=128,
    nope_dim=128,
    rope_dim=64,
    value_dim=128,
    kv_rank=512,
    page_size=64,
    scale=192**-0.5,
    dtype=torch.bfloat16,
    kv_dtype=torch.bfloat16,
    device=torch.device("meta"),
)


def tensors(asked: Geometry, plan: AttentionPlan) -> tuple[Tensor, ...]:
    """q, latent, pages without NaN, w_uk, w_uv."""
    torch.manual_seed(0)
    total, latent = len(plan.write_slots), asked.kv_rank + asked.rope_dim
    shapes = (
        (total, asked.heads, asked.nope_dim + asked.rope_dim),
        (total, latent),
        (ALL_PAGES, 2, asked.page_size, latent),
        (asked.heads, asked.nope_dim, asked.kv_rank),
        (asked.heads, asked.value_dim, asked.kv_rank),
    )
    q, new, pool, w_uk, w_uv = (
        torch.randn(shape, dtype=asked.dtype, device=asked.device) for shape in shapes
    )
    scale = asked.kv_rank**-0.5
    return q, new, pool.to(asked.kv_dtype)[:, 1], w_uk * scale, w_uv * scale


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("heads", "rows"),
    [
        (3, [(40, 1)]),
        (3, [(15, 1), (16, 1), (31, 1), (32, 1)]),
        # heads in two programs, of which the second has four
        (20, [(16, 1), (40, 1)]),
        # single tokens about a chunk
        (3, [(20, 1), (3, 5), (40, 1)]),
    ],
)
@pytest.mark.parametrize("multiprocessors", [1, MANY])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_whole_contexts_and_pieces(
    device: str, multiprocessors: int, heads: int, rows: Rows
) -> None:
    """On one multiprocessor nothing is cut."""
    where = torch.device(device)
    asked = Geometry(heads, 8, 4, 6, 10, PAGE, 0.4, torch.float32, torch.float32, where)
    plan = plan_on(device, plan_of(rows, padded=sum(length for _, length in rows) + 2))
    given = tensors(asked, plan)
    found = kernel.prepare(asked, PIECES, multiprocessors, plan)(*given)
    torch.testing.assert_close(found, definition.prepare(asked, plan)(*given), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("multiprocessors", [1, 40])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_steps_that_are_repeated(device: str, multiprocessors: int) -> None:
    """The same launches each time, on what the steps write into their tensors; there is room for
    four requests."""
    asked = Geometry(20, 8, 4, 6, 10, PAGE, 0.4, torch.float32, torch.float32, torch.device(device))
    place = repeating(device, 4, 11)
    repeated = kernel.Preparing(asked, PIECES, multiprocessors).repeated(place)
    for rows in ([(40, 1), (15, 1), (0, 1)], [(31, 1)], [(9, 1)] * 4, [(32, 1)]):
        plan = plan_on(device, plan_of(rows, padded=4))
        write(place, plan)
        repeated.fill(plan)
        given = tensors(asked, plan)
        expected = definition.prepare(asked, plan)(*given)
        torch.testing.assert_close(repeated.attend(*given), expected, rtol=1e-4, atol=1e-5)


def recorded(asked: Geometry, rows: Rows) -> list[Launch]:
    plan = plan_on("meta", plan_of(rows))
    with recording() as launches:
        choose(asked).make(asked)(plan)(*tensors(asked, plan))
    return launches


def test_what_is_compiled_depends_on_no_context() -> None:
    steps = [[(3, 1)], [(130, 1)], [(16, 1), (31, 1)]]
    one, long, two = variants(*(recorded(DEEPSEEK_V3, rows) for rows in steps))
    assert one == long == two and len(one) == 3


@pytest.mark.parametrize("heads", [128, 16])
def test_compiles_for_sm_90(hopper: Compile, heads: int) -> None:
    """DeepSeek-V3 whole, as with data-parallel attention, and on one of eight ranks."""
    launches = recorded(replace(DEEPSEEK_V3, heads=heads), [(3, 1)])
    assert {each.stack for each in hopper(launches)} == {0}


@pytest.mark.gpu
@pytest.mark.parametrize("heads", [128, 16])
def test_real_heads_in_bfloat16(heads: int) -> None:
    asked = replace(DEEPSEEK_V3, heads=heads, page_size=PAGE, device=torch.device("cuda"))
    plan = plan_on("cuda", plan_of([(99, 1), (15, 1)]))
    given = tensors(asked, plan)
    found = kernel.prepare(asked, replace(tuning(asked), least=32), MANY, plan)(*given)
    exact = replace(asked, dtype=torch.float32, kv_dtype=torch.float32)
    expected = definition.prepare(exact, plan)(*(each.float() for each in given))
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
