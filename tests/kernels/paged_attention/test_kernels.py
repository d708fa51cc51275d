"""Each kernel against attention over one request's own tokens, on pages that are full of NaN."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from attention_steps import (
    ALL_PAGES,
    NULL_PAGE,
    PAGE,
    ROWS,
    STRANGERS_PAGE,
    UNORDERED,
    Rows,
    plan_of,
    plan_on,
)
from pds_kernels.paged_attention import Geometry, Kernel
from pds_kernels.paged_attention.dispatch import KERNELS
from pds_kernels.plan import AttentionPlan
from serving_kernels import served
from torch import Tensor

Variant = dict[str, float | int | bool]
HEADS, KV_HEADS, DIM = 6, 2, 8
VARIANTS: dict[str, Variant] = {
    "plain": {},
    "scale": {"scale": 0.3},
    "window of 1": {"window": 1},
    "window of 3": {"window": 3},
    "window of 6": {"window": 6},
    "window of 64": {"window": 64},
    "softcap": {"softcap": 0.5},
    "sinks": {"sinks": True},
    "all": {"scale": 0.3, "window": 7, "softcap": 0.5, "sinks": True},
}


@dataclass(frozen=True)
class Step:
    """A step's inputs, with the past of its requests in the pages, and what is to come out."""

    plan: AttentionPlan
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    """q, k, v, keys, values."""
    sinks: Tensor | None
    expected: Tensor
    """[tokens without padding, heads, D]"""


def geometry(
    device: torch.device | str,
    kv_dtype: torch.dtype = torch.float32,
    variant: Variant | None = None,
) -> Geometry:
    return Geometry(
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=DIM,
        page_size=PAGE,
        dtype=torch.float32,
        kv_dtype=kv_dtype,
        device=torch.device(device),
        **variant or {},
    )


def step_of(
    rows: Rows,
    padded: int = 0,
    spare: int = 0,
    kv_dtype: torch.dtype = torch.float32,
    variant: Variant | None = None,
) -> Step:
    """Places of pages that no token of these requests fills are NaN, but for the null page's."""
    torch.manual_seed(len(rows))
    asked = geometry("cpu", kv_dtype, variant)
    plan = plan_of(rows, padded, spare, asked.window or 1000)
    sinks = torch.randn(HEADS) if asked.sinks else None
    # page-major, as the pool is: a layer's pages are strided views of a larger allocation
    pool = torch.full((ALL_PAGES, 2, 2, KV_HEADS, PAGE, DIM), float("nan"), dtype=kv_dtype)
    pool[NULL_PAGE] = 0
    keys, values = pool[:, 1, 0], pool[:, 1, 1]
    total = len(plan.write_slots)
    q = torch.randn(total, HEADS, DIM)
    k, v = (torch.randn(total, KV_HEADS, DIM).to(kv_dtype).float() for _ in range(2))
    expected = []
    for request, (start, length) in enumerate(rows):
        past = torch.randn(2, start, KV_HEADS, DIM).to(kv_dtype)
        for position in range(start):
            page = plan.page_table[request, position // PAGE]
            if page == STRANGERS_PAGE:
                continue
            keys[page, :, position % PAGE] = past[0, position]
            values[page, :, position % PAGE] = past[1, position]
        begin = plan.cu_seqlens_q_host[request]
        mine = slice(begin, begin + length)
        context = [torch.cat((past[side].float(), (k, v)[side][mine])) for side in (0, 1)]
        expected.append(plain(q[mine], *context, start, asked, sinks))
    return Step(plan, (q, k, v, keys, values), sinks, torch.cat(expected))


def plain(
    q: Tensor, k: Tensor, v: Tensor, start: int, asked: Geometry, sinks: Tensor | None
) -> Tensor:
    """q [T, H, D] at positions start …; k, v [start + T, K, D]. Head by head, token by token."""
    out = torch.empty_like(q)
    for at, head in product(range(len(q)), range(HEADS)):
        newest, kv_head = start + at, head // (HEADS // KV_HEADS)
        seen = slice(max(0, newest + 1 - (asked.window or 1000)), newest + 1)
        scores = (k[seen, kv_head] @ q[at, head]) * (asked.scale or DIM**-0.5)
        if asked.softcap:
            scores = asked.softcap * torch.tanh(scores / asked.softcap)
        shares = scores.exp()
        total = shares.sum() + (0 if sinks is None else sinks[head].exp())
        out[at, head] = (shares / total) @ v[seen, kv_head]
    return out


def moved(step: Step, device: str) -> Step:
    """The step on `device`. The pool moves as a whole: its views keep their strides."""
    plan, (q, k, v, keys, values) = step.plan, step.inputs
    pool = torch.empty((ALL_PAGES, 2, 2, KV_HEADS, PAGE, DIM), dtype=keys.dtype, device=device)
    pool[:, 1, 0], pool[:, 1, 1] = keys, values
    return Step(
        plan_on(device, plan),
        (q.to(device), k.to(device), v.to(device), pool[:, 1, 0], pool[:, 1, 1]),
        None if step.sinks is None else step.sinks.to(device),
        step.expected,
    )


def check(kernel: Kernel, device: str, step: Step, variant: Variant | None = None) -> None:
    step = moved(step, device)
    prepare = kernel.make(geometry(device, step.inputs[3].dtype, variant))
    total, tokens = len(step.inputs[0]), len(step.expected)
    out = prepare(step.plan)(*step.inputs, step.sinks).cpu().view(total, HEADS, DIM)
    torch.testing.assert_close(out[:tokens], step.expected, rtol=1e-4, atol=1e-5)
    assert out[tokens:].isfinite().all()
    for pages in step.inputs[3:]:
        assert pages[NULL_PAGE].isfinite().all()


@pytest.mark.parametrize("padded", [0, 32])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_against_plain_attention(
    kernel: Kernel, device: str, stored: torch.dtype, rows: Rows, padded: int
) -> None:
    check(kernel, device, step_of(rows, padded, kv_dtype=stored))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_variants_against_plain_attention(
    kernel: Kernel, device: str, name: str, rows: Rows
) -> None:
    check(kernel, device, step_of(rows, 32, variant=VARIANTS[name]), VARIANTS[name])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", [name for name in VARIANTS if "window" in VARIANTS[name]])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry, "cpu"))
def test_no_page_before_the_window_is_read(
    kernel: Kernel, device: str, name: str, rows: Rows
) -> None:
    """On the CPU a page that is nowhere is an error; a GPU would not survive the test."""
    step = step_of(rows, variant=VARIANTS[name])
    step.plan.page_table[step.plan.page_table == STRANGERS_PAGE] = 1 << 20
    check(kernel, device, step, VARIANTS[name])


@pytest.mark.parametrize("given", [True, False])
def test_sinks_are_given_where_the_geometry_has_them(given: bool) -> None:
    step = step_of([(0, 3)])
    attend = KERNELS[-1].make(geometry("cpu", variant={"sinks": not given}))(step.plan)
    with pytest.raises(ValueError, match=r"geometry\.sinks is"):
        attend(*step.inputs, torch.zeros(HEADS) if given else None)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_any_order_of_requests_is_right(kernel: Kernel, device: str) -> None:
    check(kernel, device, step_of(UNORDERED))


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_page_table_may_be_wider_than_any_context(kernel: Kernel, device: str) -> None:
    check(kernel, device, step_of([(0, 5), (3, 1), (4, 1)], spare=3))


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_plan_serves_every_layer(kernel: Kernel, device: str) -> None:
    """What was prepared once is not used up by the first layer."""
    step = moved(step_of([(4, 4), (3, 1), (16, 1)]), device)
    attend = kernel.make(geometry(device))(step.plan)
    torch.testing.assert_close(attend(*step.inputs), attend(*step.inputs), rtol=0, atol=0)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_pages_may_be_written_already(kernel: Kernel, device: str) -> None:
    step = moved(step_of([(4, 4), (3, 1), (16, 1)], padded=7), device)
    q, k, v, keys, values = step.inputs
    attend = kernel.make(geometry(device))(step.plan)
    expected = attend(q, k, v, keys, values)
    written = keys.clone(), values.clone()
    torch.testing.assert_close(attend(q, None, None, keys, values), expected, rtol=0, atol=0)
    torch.testing.assert_close((keys, values), written, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_step_of_padding_alone(kernel: Kernel, device: str) -> None:
    plan = plan_on(device, plan_of([], padded=3))
    q = torch.ones(3, HEADS, DIM, device=device)
    k = torch.ones(3, KV_HEADS, DIM, device=device)
    pages = torch.zeros(ALL_PAGES, KV_HEADS, PAGE, DIM, device=device)
    attend = kernel.make(geometry(device))(plan)
    assert attend(q, k, k, pages, pages.clone()).isfinite().all()
