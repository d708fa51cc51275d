"""Paged attention against plain attention over one request's own tokens, in poisoned pages."""

import pytest
import torch
import torch.nn.functional as F
from pds_engine.layers.attention import AttentionPlan, attend
from pds_engine.messages import Admit, Row, Sampling, StepPlan
from pds_engine.runner.batch import build
from pds_engine.runner.tables import Tables

PAGE, HEADS, KV_HEADS, DIM, PAGES = 4, 6, 2, 8, 40


def plain(q, k, v, start):
    """q [T, H, D] at positions start …; k, v [start + T, K, D]."""
    k, v = (part.repeat_interleave(HEADS // KV_HEADS, 1).transpose(0, 1) for part in (k, v))
    seen = torch.ones(len(q), k.shape[1], dtype=torch.bool).tril(start)
    return F.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=seen).transpose(0, 1)


def planned(rows: list[tuple[int, int]], padded: int = 0) -> tuple[AttentionPlan, Tables]:
    """The attention of a step with one request per (start, length), on scattered pages."""
    tables = Tables(len(rows), 12, PAGE, 10, PAGES, torch.device("cpu"))
    free = torch.randperm(PAGES, generator=torch.Generator().manual_seed(0)).tolist()
    for slot, (start, length) in enumerate(rows):
        pages = tuple(free.pop() for _ in range((start + length + PAGE - 1) // PAGE))
        sampling = Sampling(max_tokens=1)
        prompt = tuple([0] * (start + length))
        tables.admit(
            Admit(
                slot=slot,
                gen=0,
                prompt_ids=prompt,
                output_ids=(),
                sampling=sampling,
                seed=0,
                pages=pages,
            )
        )
    step = StepPlan(
        step_id=0,
        rows=tuple(Row(slot=i, gen=0, start=s, length=n) for i, (s, n) in enumerate(rows)),
        expects_output=False,
        depends_on=-1,
        padded_tokens=padded,
    )
    return build(step, tables, padded).attention, tables


def laid_out(rows: list[tuple[int, int]]) -> list[int]:
    """Slots in the order of their tokens: chunks, then decode rows by their contexts' doublings."""

    def place(slot: int) -> tuple[bool, int]:
        start, length = rows[slot]
        return length == 1, max(8, start // PAGE).bit_length() if length == 1 else 0

    return sorted(range(len(rows)), key=place)


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
        [(5, 2), (0, 1), (15, 1), (16, 1), (0, 7), (41, 1), (35, 1)],
    ],
)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_against_plain_attention(rows, padded, stored):
    torch.manual_seed(len(rows))
    plan, tables = planned(rows, padded)
    # page-major, as the pool is: a layer's pages are strided views of a larger allocation
    pool = torch.full((PAGES + 1, 2, 2, KV_HEADS, PAGE, DIM), float("nan"), dtype=stored)
    pool[-1] = 0
    keys, values = pool[:, 1, 0], pool[:, 1, 1]
    total = len(plan.pages)
    q = torch.randn(total, HEADS, DIM)
    k, v = (torch.randn(total, KV_HEADS, DIM).to(stored).float() for _ in range(2))
    whole = []
    for slot, (start, _) in enumerate(rows):
        past = torch.randn(2, start, KV_HEADS, DIM).to(stored)
        for position in range(start):
            page = tables.pages[slot, position // PAGE]
            keys[page, :, position % PAGE] = past[0, position]
            values[page, :, position % PAGE] = past[1, position]
        whole.append(past.float())

    out = attend(q, k, v, keys, values, plan).view(total, HEADS, DIM)

    at = 0
    for slot in laid_out(rows):
        start, length = rows[slot]
        mine = slice(at, at + length)
        at += length
        context = [torch.cat((whole[slot][side], (k, v)[side][mine])) for side in (0, 1)]
        torch.testing.assert_close(out[mine], plain(q[mine], *context, start), rtol=1e-4, atol=1e-5)
    assert out[at:].isfinite().all()
    assert pool[-1].isfinite().all()
