"""Each kernel against a head's attention over keys and values of its own, on pages full of NaN."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
from attention_steps import ALL_PAGES, NULL_PAGE, PAGE, ROWS, UNORDERED, Rows, plan_of, plan_on
from pds_kernels.mla import Geometry, Kernel
from pds_kernels.mla.dispatch import KERNELS
from pds_kernels.plan import AttentionPlan
from serving_kernels import served
from torch import Tensor

HEADS, NOPE, ROPE, VALUE, RANK = 3, 8, 4, 6, 10
LAYERS = 2
SCALE = 0.4


@dataclass(frozen=True)
class Step:
    """A step's inputs, with the past of its requests in the pages, and what is to come out."""

    plan: AttentionPlan
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    """q, latent, pages, w_uk, w_uv."""
    expected: Tensor
    """[tokens without padding, heads, value]"""


def geometry(device: torch.device, kv_dtype: torch.dtype = torch.float32) -> Geometry:
    return Geometry(
        heads=HEADS,
        nope_dim=NOPE,
        rope_dim=ROPE,
        value_dim=VALUE,
        kv_rank=RANK,
        page_size=PAGE,
        scale=SCALE,
        dtype=torch.float32,
        kv_dtype=kv_dtype,
        device=device,
    )


def pool(device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """One layer of a pool that is page-major: a strided view of a larger allocation. Places that
    no token fills are NaN, but for the null page's."""
    shape = (ALL_PAGES, LAYERS, PAGE, RANK + ROPE)
    pages = torch.full(shape, float("nan"), dtype=dtype, device=device)
    pages[NULL_PAGE] = 0
    return pages[:, 1]


def step_of(
    rows: Rows, padded: int = 0, spare: int = 0, kv_dtype: torch.dtype = torch.float32
) -> Step:
    torch.manual_seed(len(rows))
    plan, pages = plan_of(rows, padded, spare), pool("cpu", kv_dtype)
    total = len(plan.write_slots)
    q, latent = torch.randn(total, HEADS, NOPE + ROPE), torch.randn(total, RANK + ROPE)
    latent = latent.to(kv_dtype).float()
    w_uk, w_uv = torch.randn(HEADS, NOPE, RANK) / 3, torch.randn(HEADS, VALUE, RANK) / 3
    expected = []
    for request, (start, length) in enumerate(rows):
        past = torch.randn(start, RANK + ROPE).to(kv_dtype)
        for position in range(start):
            page = plan.page_table[request, position // PAGE]
            pages[page, position % PAGE] = past[position]
        begin = plan.cu_seqlens_q_host[request]
        mine = slice(begin, begin + length)
        expected.append(plain(q[mine], torch.cat((past.float(), latent[mine])), w_uk, w_uv))
    return Step(plan, (q, latent, pages, w_uk, w_uv), torch.cat(expected))


def plain(q: Tensor, context: Tensor, w_uk: Tensor, w_uv: Tensor) -> Tensor:
    """q: [T, heads, nope + rope], the last T of the context [C, rank + rope]. Head by head, token
    by token, from the definitions of a key and a value."""
    out = torch.empty(len(q), HEADS, VALUE)
    for at, head in product(range(len(q)), range(HEADS)):
        seen = context[: len(context) - len(q) + at + 1]
        keys = torch.stack([torch.cat((w_uk[head] @ c[:RANK], c[RANK:])) for c in seen])
        values = torch.stack([w_uv[head] @ c[:RANK] for c in seen])
        out[at, head] = (keys @ q[at, head] * SCALE).softmax(0) @ values
    return out


def moved(step: Step, device: str) -> Step:
    q, latent, pages, w_uk, w_uv = step.inputs
    there = pool(device, pages.dtype)
    there.copy_(pages)
    inputs = (q.to(device), latent.to(device), there, w_uk.to(device), w_uv.to(device))
    return Step(plan_on(device, step.plan), inputs, step.expected)


def check(kernel: Kernel, device: str, step: Step) -> None:
    step = moved(step, device)
    prepare = kernel.make(geometry(torch.device(device), step.inputs[2].dtype))
    total, tokens = len(step.inputs[0]), len(step.expected)
    out = prepare(step.plan)(*step.inputs).cpu().view(total, HEADS, VALUE)
    torch.testing.assert_close(out[:tokens], step.expected, rtol=1e-5, atol=1e-6)
    assert out[tokens:].isfinite().all()
    assert step.inputs[2][NULL_PAGE].isfinite().all()


@pytest.mark.parametrize("padded", [0, 32])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_against_plain_attention(
    kernel: Kernel, device: str, stored: torch.dtype, rows: Rows, padded: int
) -> None:
    check(kernel, device, step_of(rows, padded, kv_dtype=stored))


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_any_order_of_requests_is_right(kernel: Kernel, device: str) -> None:
    check(kernel, device, step_of(UNORDERED))


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_page_table_may_be_wider_than_any_context(kernel: Kernel, device: str) -> None:
    check(kernel, device, step_of([(0, 5), (3, 1), (4, 1)], spare=3))


@pytest.mark.parametrize("start", [0, 2, 3, 14])
@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_token_is_the_same_in_a_chunk_and_alone(kernel: Kernel, device: str, start: int) -> None:
    """The reference expands keys and values for the one, and absorbs queries for the other."""
    both, last = moved(step_of([(start, 2)]), device), plan_on(device, plan_of([(start + 1, 1)]))
    prepare = kernel.make(geometry(torch.device(device)))
    q, latent, pages, w_uk, w_uv = both.inputs
    chunk = prepare(both.plan)(q, latent, pages, w_uk, w_uv)
    alone = prepare(last)(q[1:], latent[1:], pages, w_uk, w_uv)
    torch.testing.assert_close(alone, chunk[1:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_plan_serves_every_layer(kernel: Kernel, device: str) -> None:
    """What was prepared once is not used up by the first layer."""
    step = moved(step_of([(4, 4), (3, 1), (16, 1)]), device)
    attend = kernel.make(geometry(torch.device(device)))(step.plan)
    torch.testing.assert_close(attend(*step.inputs), attend(*step.inputs), rtol=0, atol=0)


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_the_latents_are_written_and_nothing_else(kernel: Kernel, device: str) -> None:
    step = moved(step_of([(2, 3), (7, 1)]), device)
    q, latent, pages, w_uk, w_uv = step.inputs
    before = pages.clone()
    kernel.make(geometry(torch.device(device)))(step.plan)(q, latent, pages, w_uk, w_uv)
    places = (step.plan.write_slots // PAGE, step.plan.write_slots % PAGE)
    assert torch.equal(pages[places], latent)
    before[places] = latent
    assert torch.equal(pages.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize(("kernel", "device"), served(KERNELS, geometry))
def test_a_step_of_padding_alone(kernel: Kernel, device: str) -> None:
    q = torch.ones(3, HEADS, NOPE + ROPE, device=device)
    latent = torch.ones(3, RANK + ROPE, device=device)
    w_uk, w_uv = (torch.ones(HEADS, dim, RANK, device=device) for dim in (NOPE, VALUE))
    attend = kernel.make(geometry(torch.device(device)))(plan_on(device, plan_of([], padded=3)))
    out = attend(q, latent, pool(device), w_uk, w_uv)
    assert out.shape == (3, HEADS * VALUE) and out.isfinite().all()
