"""Each kernel against attention over one request's own tokens, on pages that are full of NaN.

`pytest -v` names the kernels that ran: those that serve this machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
import torch.nn.functional as F
from pds_kernels.paged_attention import AttentionPlan, Geometry, Kernel
from pds_kernels.paged_attention.dispatch import KERNELS
from torch import Tensor

PAGE, HEADS, KV_HEADS, DIM, PAGES = 4, 6, 2, 8, 40
NULL_PAGE = PAGES
Rows = Sequence[tuple[int, int]]
"""(start, length) of each request: `length` tokens of the step, after `start` that are there."""


@dataclass(frozen=True)
class Step:
    """A step's inputs, with the past of its requests in the pages, and what is to come out."""

    plan: AttentionPlan
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    """q, k, v, keys, values."""
    expected: Tensor
    """[tokens without padding, heads, D]"""


def geometry(device: str, kv_dtype: torch.dtype = torch.float32) -> Geometry:
    return Geometry(
        heads=HEADS,
        kv_heads=KV_HEADS,
        head_dim=DIM,
        page_size=PAGE,
        dtype=torch.float32,
        kv_dtype=kv_dtype,
        device=torch.device(device),
    )


def served() -> list[object]:
    """Each kernel on each device that it serves here."""
    return [
        pytest.param(kernel, device, marks=marks, id=f"{kernel.name}-{device}")
        for device, marks in (("cpu", ()), ("cuda", pytest.mark.gpu))
        for kernel in KERNELS
        if kernel.serves(geometry(device))
    ]


def plan_of(rows: Rows, padded: int = 0, spare: int = 0) -> AttentionPlan:
    """A step of `rows` on scattered pages. `spare`: columns of the page table that none needs."""
    free = torch.randperm(PAGES, generator=torch.Generator().manual_seed(0)).tolist()
    seq_lens = tuple(start + length for start, length in rows)
    starts = (0, *accumulate(length for _, length in rows))
    width = max(-(-context // PAGE) for context in seq_lens) + spare
    table = torch.full((len(rows), width), NULL_PAGE, dtype=torch.int32)
    slots: list[int] = []
    for request, (start, length) in enumerate(rows):
        pages = [free.pop() for _ in range(-(-(start + length) // PAGE))]
        table[request, : len(pages)] = torch.tensor(pages, dtype=torch.int32)
        slots += [pages[at // PAGE] * PAGE + at % PAGE for at in range(start, start + length)]
    slots += [NULL_PAGE * PAGE] * (padded - len(slots))
    return AttentionPlan(
        page_table=table,
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
        cu_seqlens_q=torch.tensor(starts, dtype=torch.int32),
        write_slots=torch.tensor(slots),
        seq_lens_host=seq_lens,
        cu_seqlens_q_host=starts,
    )


def step_of(
    rows: Rows, padded: int = 0, spare: int = 0, kv_dtype: torch.dtype = torch.float32
) -> Step:
    """Places of pages that no token of these requests fills are NaN, but for the null page's."""
    torch.manual_seed(len(rows))
    plan = plan_of(rows, padded, spare)
    # page-major, as the pool is: a layer's pages are strided views of a larger allocation
    pool = torch.full((PAGES + 1, 2, 2, KV_HEADS, PAGE, DIM), float("nan"), dtype=kv_dtype)
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
            keys[page, :, position % PAGE] = past[0, position]
            values[page, :, position % PAGE] = past[1, position]
        begin = plan.cu_seqlens_q_host[request]
        mine = slice(begin, begin + length)
        context = [torch.cat((past[side].float(), (k, v)[side][mine])) for side in (0, 1)]
        expected.append(plain(q[mine], *context, start))
    return Step(plan, (q, k, v, keys, values), torch.cat(expected))


def plain(q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
    """q [T, H, D] at positions start …; k, v [start + T, K, D]."""
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, 1).transpose(0, 1) for part in (k, v))
    seen = torch.ones(len(q), k.shape[1], dtype=torch.bool).tril(start)
    return F.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=seen).transpose(0, 1)


def moved(step: Step, device: str) -> Step:
    """The step on `device`. The pool moves as a whole: its views keep their strides."""
    plan, (q, k, v, keys, values) = step.plan, step.inputs
    pool = torch.empty((PAGES + 1, 2, 2, KV_HEADS, PAGE, DIM), dtype=keys.dtype, device=device)
    pool[:, 1, 0], pool[:, 1, 1] = keys, values
    return Step(
        AttentionPlan(
            page_table=plan.page_table.to(device),
            seq_lens=plan.seq_lens.to(device),
            cu_seqlens_q=plan.cu_seqlens_q.to(device),
            write_slots=plan.write_slots.to(device),
            seq_lens_host=plan.seq_lens_host,
            cu_seqlens_q_host=plan.cu_seqlens_q_host,
        ),
        (q.to(device), k.to(device), v.to(device), pool[:, 1, 0], pool[:, 1, 1]),
        step.expected,
    )


def check(kernel: Kernel, device: str, step: Step) -> None:
    step = moved(step, device)
    prepare = kernel.make(geometry(device, step.inputs[3].dtype))
    total, tokens = len(step.inputs[0]), len(step.expected)
    out = prepare(step.plan)(*step.inputs).cpu().view(total, HEADS, DIM)
    torch.testing.assert_close(out[:tokens], step.expected, rtol=1e-4, atol=1e-5)
    assert out[tokens:].isfinite().all()
    for pages in step.inputs[3:]:
        assert pages[NULL_PAGE].isfinite().all()


@pytest.mark.parametrize("padded", [0, 32])
@pytest.mark.parametrize(
    "rows",
    [
        [(0, 1)],
        [(3, 1)],
        [(4, 1)],
        [(0, 4)],
        [(0, 5), (0, 3)],
        [(4, 4), (8, 3)],
        [(5, 2), (0, 7), (0, 1), (15, 1), (16, 1), (35, 1), (41, 1)],
    ],
)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "device"), served())
def test_against_plain_attention(
    kernel: Kernel, device: str, stored: torch.dtype, rows: Rows, padded: int
) -> None:
    check(kernel, device, step_of(rows, padded, kv_dtype=stored))


@pytest.mark.parametrize(("kernel", "device"), served())
def test_any_order_of_requests_is_right(kernel: Kernel, device: str) -> None:
    check(kernel, device, step_of([(41, 1), (5, 2), (0, 1), (35, 1), (0, 7), (16, 1), (15, 1)]))


@pytest.mark.parametrize(("kernel", "device"), served())
def test_a_page_table_may_be_wider_than_any_context(kernel: Kernel, device: str) -> None:
    check(kernel, device, step_of([(0, 5), (3, 1), (4, 1)], spare=3))


@pytest.mark.parametrize(("kernel", "device"), served())
def test_a_plan_serves_every_layer(kernel: Kernel, device: str) -> None:
    """What was prepared once is not used up by the first layer."""
    step = moved(step_of([(4, 4), (3, 1), (16, 1)]), device)
    attend = kernel.make(geometry(device))(step.plan)
    torch.testing.assert_close(attend(*step.inputs), attend(*step.inputs), rtol=0, atol=0)


@pytest.mark.parametrize(("kernel", "device"), served())
def test_a_step_of_padding_alone(kernel: Kernel, device: str) -> None:
    none = torch.zeros(0, dtype=torch.int32, device=device)
    slots = torch.full((3,), NULL_PAGE * PAGE, device=device)
    plan = AttentionPlan(
        page_table=none.view(0, 0),
        seq_lens=none,
        cu_seqlens_q=torch.zeros(1, dtype=torch.int32, device=device),
        write_slots=slots,
        seq_lens_host=(),
        cu_seqlens_q_host=(0,),
    )
    q = torch.ones(3, HEADS, DIM, device=device)
    k = torch.ones(3, KV_HEADS, DIM, device=device)
    pages = torch.zeros(PAGES + 1, KV_HEADS, PAGE, DIM, device=device)
    attend = kernel.make(geometry(device))(plan)
    assert attend(q, k, k, pages, pages.clone()).isfinite().all()
