"""Latent attention on CPUs: packed weights, and what a token does not depend on."""

from dataclasses import replace

import pytest
import torch
from attention_steps import ALL_PAGES, PAGE, Rows, plan_of
from pds_kernels import cpu
from pds_kernels.mla import Geometry, Heads, Kernel, packed
from pds_kernels.mla import reference as definition
from pds_kernels.mla.dispatch import KERNELS
from pds_kernels.plan import AttentionPlan
from serving_kernels import served
from torch import Tensor

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
HEADS, NOPE, ROPE, VALUE, RANK = 3, 20, 6, 34, 50
DTYPES = [(F32, F32), (F32, BF16), (F32, F16), (BF16, BF16)]
"""Of queries and of weights."""


def geometry(device: torch.device, dtype: torch.dtype = F32) -> Geometry:
    return Geometry(HEADS, NOPE, ROPE, VALUE, RANK, PAGE, 0.2, dtype, dtype, device)


ON_CPU = [each for each in served(KERNELS, geometry, "cpu") if each.id.startswith("cpu")]


def weights(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    torch.manual_seed(3)
    shapes = (HEADS, NOPE, RANK), (HEADS, VALUE, RANK)
    return tuple((torch.randn(shape) / 7).to(dtype) for shape in shapes)  # type: ignore[return-value]


def tokens(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, latent, pages without NaN."""
    torch.manual_seed(4)
    q, latent = torch.randn(count, HEADS, NOPE + ROPE), torch.randn(count, RANK + ROPE)
    pages = torch.randn(ALL_PAGES, 2, PAGE, RANK + ROPE)
    return q.to(dtype), latent.to(dtype), pages.to(dtype)[:, 1]


@pytest.mark.parametrize("rows", [[(37, 1)], [(0, 9), (3, 5), (40, 1), (7, 1)]])
@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize(("kernel", "device"), ON_CPU)
def test_packed_weights_give_what_the_definition_gives(
    kernel: Kernel, device: str, dtypes: tuple[torch.dtype, ...], rows: Rows
) -> None:
    dtype, stored = dtypes
    asked, plan = geometry(torch.device(device), dtype), plan_of(rows, padded=18)
    plain, given = weights(stored), tokens(18, dtype)
    made = kernel.make(asked)
    out = made(plan)(*given, *made.pack(*plain))
    wide = replace(asked, dtype=F32, kv_dtype=F32)
    expected = definition.prepare(wide, plan)(
        *(each.float() for each in given), *(each.float() for each in plain)
    )
    count = plan.cu_seqlens_q_host[-1]
    assert (out[count:] == 0).all() and out.dtype == dtype
    error = (out[:count].float() - expected[:count]).norm() / expected[:count].norm()
    assert error < (2e-2 if dtype == BF16 else 1e-5)


def attended(
    kernel: Kernel, asked: Geometry, plan: AttentionPlan, given: tuple[Tensor, ...]
) -> Tensor:
    q, latent, pages = given
    own = torch.empty_strided(pages.shape, pages.stride(), dtype=pages.dtype).copy_(pages)
    return kernel.make(asked)(plan)(q, latent, own, *weights(asked.dtype))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("kernel", "device"), ON_CPU)
def test_a_token_depends_neither_on_its_batch_nor_on_threads(
    kernel: Kernel, device: str, dtype: torch.dtype
) -> None:
    """Contexts of several pieces, on pages that repeat. Chunks that are cut otherwise, too."""
    asked = geometry(torch.device(device), dtype)
    long = torch.arange(1300 // PAGE, dtype=torch.int32) % (ALL_PAGES - 2)
    seq_lens, lengths = (1300, 700, 90, 1100), (1, 1, 60, 1)

    def step(requests: tuple[int, ...], skipped: int = 0) -> Tensor:
        """The results of these requests, of which the third leaves out its last tokens."""
        contexts = [seq_lens[each] - (skipped if each == 2 else 0) for each in requests]
        counts = [lengths[each] - (skipped if each == 2 else 0) for each in requests]
        starts = torch.tensor([0, *counts]).cumsum(0)
        total = int(starts[-1])
        plan = AttentionPlan(
            page_table=long.repeat(len(requests), 1),
            seq_lens=torch.tensor(contexts, dtype=torch.int32),
            cu_seqlens_q=starts.int(),
            write_slots=torch.full((total,), ALL_PAGES * PAGE - 1),  # a place that nobody reads
            seq_lens_host=tuple(contexts),
            cu_seqlens_q_host=tuple(starts.tolist()),
        )
        q, latent, pages = tokens(63, dtype)
        first = [sum(lengths[:each]) for each in requests]
        mine = torch.cat([q[at : at + count] for at, count in zip(first, counts, strict=True)])
        return attended(kernel, asked, plan, (mine, latent[:total], pages))

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = step((0, 1, 2, 3))
        torch.set_num_threads(2)
        assert torch.equal(step((0, 1, 2, 3)), whole)
        assert torch.equal(step((0,)), whole[:1])
        assert torch.equal(step((3, 1)), whole[[62, 1]])
        assert torch.equal(step((2,), skipped=13), whole[2:49])
    finally:
        torch.set_num_threads(threads)


def test_a_layer_is_a_list_of_operations() -> None:
    """Two layers of one geometry in one program, on one plan."""
    asked, plan = geometry(torch.device("cpu")), plan_of([(0, 9), (40, 1)])
    kernel = next(each for each in KERNELS if each.name == "cpu").make(asked)
    q, latent, pages = tokens(10, F32)
    heads = packed(Heads(F32, F32, asked.device), *weights(F32))
    outs = [torch.empty(10, HEADS * VALUE) for _ in range(2)]
    ops = [kernel.planning()]
    for scale, out in zip((1.0, 2.0), outs, strict=True):
        ops += kernel.attending(q * scale, latent, pages, heads, out)
    cpu.Program(ops).run(cpu.Step.of(10, plan))
    for scale, out in zip((1.0, 2.0), outs, strict=True):
        expected = definition.prepare(asked, plan)(q * scale, latent, pages, *weights(F32))
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
