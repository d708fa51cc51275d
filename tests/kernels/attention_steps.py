"""Steps that every kind of attention is tested on: lengths around the edges of pages."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from pds_kernels.plan import AttentionPlan

PAGE, PAGES = 4, 40
NULL_PAGE, STRANGERS_PAGE = PAGES, PAGES + 1
ALL_PAGES = PAGES + 2
Rows = Sequence[tuple[int, int]]
"""(start, length) of each request: `length` tokens of the step, after `start` that are there."""
ROWS: tuple[Rows, ...] = (
    [(0, 1)],
    [(3, 1)],
    [(4, 1)],
    [(0, 4)],
    [(0, 5), (0, 3)],
    [(4, 4), (8, 3)],
    [(5, 2), (0, 7), (0, 1), (15, 1), (16, 1), (35, 1), (41, 1)],
    [(23, 9), (30, 1), (14, 1), (16, 1), (13, 1), (24, 1)],
)
UNORDERED: Rows = [(41, 1), (5, 2), (0, 1), (35, 1), (0, 7), (16, 1), (15, 1)]


def plan_of(rows: Rows, padded: int = 0, spare: int = 0, window: int = 1000) -> AttentionPlan:
    """A step of `rows` on scattered pages. `spare`: columns of the page table that none needs.
    Pages that lie before what a row sees are a stranger's."""
    free = torch.randperm(PAGES, generator=torch.Generator().manual_seed(0)).tolist()
    seq_lens = tuple(start + length for start, length in rows)
    starts = (0, *accumulate(length for _, length in rows))
    width = max((-(-context // PAGE) for context in seq_lens), default=0) + spare
    table = torch.full((len(rows), width), NULL_PAGE, dtype=torch.int32)
    slots: list[int] = []
    for request, (start, length) in enumerate(rows):
        pages = [free.pop() for _ in range(-(-(start + length) // PAGE))]
        stale = max(0, start + 1 - window) // PAGE
        pages[:stale] = [STRANGERS_PAGE] * stale
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


def plan_on(device: str, plan: AttentionPlan) -> AttentionPlan:
    return replace(
        plan,
        page_table=plan.page_table.to(device),
        seq_lens=plan.seq_lens.to(device),
        cu_seqlens_q=plan.cu_seqlens_q.to(device),
        write_slots=plan.write_slots.to(device),
    )


def repeating(device: str, requests: int, width: int) -> AttentionPlan:
    """Tensors for steps of up to so many requests of one token, on `device`; the host's part is
    empty."""

    def numbers(*shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return AttentionPlan(
        page_table=numbers(requests, width),
        seq_lens=numbers(requests),
        cu_seqlens_q=numbers(requests + 1),
        write_slots=numbers(requests, dtype=torch.int64),
        seq_lens_host=(),
        cu_seqlens_q_host=(),
    )


def write(into: AttentionPlan, plan: AttentionPlan) -> None:
    """A step's tensors in their place; its padding fills the tokens."""
    rows, width = plan.page_table.shape
    into.page_table[:rows, :width] = plan.page_table
    into.seq_lens[:rows] = plan.seq_lens
    into.cu_seqlens_q[: rows + 1] = plan.cu_seqlens_q
    into.write_slots.copy_(plan.write_slots)
