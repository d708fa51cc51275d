"""What is special about the kernel for CPUs: all dtypes, vectors' and pieces' edges, and numbers
that depend on nothing but what a token sees."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate

import pytest
import torch
from pds_kernels import cpu
from pds_kernels.paged_attention import Geometry, Kernel
from pds_kernels.paged_attention.cpu import OnCpu
from pds_kernels.paged_attention.dispatch import KERNELS
from pds_kernels.plan import AttentionPlan
from poison import poisoned
from serving_kernels import served
from torch import Tensor

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
BASE = Geometry(4, 2, 64, 16, F32, F32, torch.device("cpu"))
Rows = Sequence[tuple[int, int]]
"""(start, length) of each request: `length` tokens of the step, after `start` that are there."""
MIXED: Rows = [
    (0, 70),
    (500, 40),
    (60, 1),
    (62, 1),
    (63, 1),
    (64, 1),
    (510, 1),
    (512, 1),
    (1300, 1),
]
"""Around the edges of blocks of 64 keys and of pieces of 512."""
SHAPES = [
    {},
    {"head_dim": 1},
    {"head_dim": 33, "page_size": 1},
    {"head_dim": 80, "page_size": 5},
    {"head_dim": 128, "page_size": 256},
    {"head_dim": 15, "heads": 2},
    {"heads": 14},
    {"heads": 160, "kv_heads": 1, "head_dim": 8},
    {"window": 1},
    {"window": 65, "sinks": True},
    {"window": 600, "softcap": 3.0, "scale": 0.7},
]
DTYPES = [(F32, F32), (F32, BF16), (F32, F16), (BF16, F32), (BF16, BF16), (BF16, F16)]


def geometry(device: torch.device) -> Geometry:
    return replace(BASE, device=device)


SERVED = pytest.mark.parametrize(
    ("kernel", "device"),
    served([each for each in KERNELS if each.name == "cpu"], geometry, "cpu"),
)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class World:
    """Requests with whole contexts: each step takes some of their tokens."""

    asked: Geometry
    q: list[Tensor]
    """Each request's, [context, heads, D]."""
    k: list[Tensor]
    v: list[Tensor]
    sinks: Tensor | None

    @classmethod
    def of(cls, asked: Geometry, contexts: Sequence[int]) -> "World":
        torch.manual_seed(0)
        shapes = [(context, asked.kv_heads, asked.head_dim) for context in contexts]
        return cls(
            asked,
            [torch.randn(n, asked.heads, dim).to(asked.dtype) for n, _, dim in shapes],
            [torch.randn(*shape).to(asked.kv_dtype) for shape in shapes],
            [torch.randn(*shape).to(asked.kv_dtype) for shape in shapes],
            torch.randn(asked.heads) if asked.sinks else None,
        )

    def plan(self, rows: dict[int, tuple[int, int]], padding: int = 0) -> AttentionPlan:
        """A step of `rows` of these requests, on scattered pages of their own."""
        size = self.asked.page_size
        wide = max(-(-len(each) // size) for each in self.q)
        own = torch.randperm(
            len(self.q) * wide, generator=torch.Generator().manual_seed(1), dtype=torch.int32
        ).view(-1, wide)
        ends = tuple(start + length for start, length in rows.values())
        cu = (0, *accumulate(length for _, length in rows.values()))
        slots = [
            int(own[request, at // size]) * size + at % size
            for request, (start, length) in rows.items()
            for at in range(start, start + length)
        ]
        slots += [own.numel() * size] * padding
        return AttentionPlan(
            page_table=own[list(rows)].contiguous(),
            seq_lens=torch.tensor(ends, dtype=torch.int32),
            cu_seqlens_q=torch.tensor(cu, dtype=torch.int32),
            write_slots=torch.tensor(slots),
            seq_lens_host=ends,
            cu_seqlens_q_host=cu,
        )

    def pages(self, plan: AttentionPlan, rows: dict[int, tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """What is there before the step; all else is NaN."""
        asked = self.asked
        count = len(self.q) * plan.page_table.shape[1] + 1
        shape = (count, 2, asked.kv_heads, asked.page_size, asked.head_dim)
        pool = torch.full(shape, float("nan"), dtype=asked.kv_dtype)
        for at, (request, (start, _)) in enumerate(rows.items()):
            places = torch.arange(start)
            pages = plan.page_table[at][places // asked.page_size]
            pool[pages, 0, :, places % asked.page_size] = self.k[request][:start]
            pool[pages, 1, :, places % asked.page_size] = self.v[request][:start]
        return pool[:, 0], pool[:, 1]

    def attend(
        self, kernel: Kernel, rows: dict[int, tuple[int, int]], padding: int = 0
    ) -> list[Tensor]:
        """Each request's result, [length, heads, D]."""
        asked = self.asked
        plan = self.plan(rows, padding)
        keys, values = self.pages(plan, rows)
        parts = [(request, slice(start, start + n)) for request, (start, n) in rows.items()]
        blank = torch.full((padding, asked.heads, asked.head_dim), float("nan"), dtype=asked.dtype)
        q = torch.cat([*(self.q[request][part] for request, part in parts), blank])
        k, v = (
            torch.cat([*(of[request][part] for request, part in parts), blank[:, : asked.kv_heads]])
            .to(asked.dtype)
            .contiguous()
            for of in (self.k, self.v)
        )
        # as a projection gives them: of one tensor, with something beside them
        joined = torch.cat((q, k, v), 1)
        q, k, v = joined.split([asked.heads, asked.kv_heads, asked.kv_heads], 1)
        with poisoned():
            out = kernel.make(asked)(plan)(q, k, v, keys, values, self.sinks)
        tokens = plan.cu_seqlens_q_host[-1]
        assert out.dtype == asked.dtype and out[tokens:].isfinite().all()
        return list(
            out[:tokens].view(-1, asked.heads, asked.head_dim).split([n for _, n in rows.values()])
        )

    def expected(self, request: int, start: int, length: int) -> Tensor:
        """The same in float64."""
        asked = self.asked
        group, end = asked.heads // asked.kv_heads, start + length
        q = self.q[request][start:end].double()
        k, v = (
            of[request][:end]
            .to(asked.dtype)
            .to(asked.kv_dtype)
            .double()
            .repeat_interleave(group, 1)
            for of in (self.k, self.v)
        )
        scale = asked.head_dim**-0.5 if asked.scale is None else asked.scale
        scores = torch.einsum("thd,chd->htc", q, k) * scale
        if asked.softcap:
            scores = asked.softcap * (scores / asked.softcap).tanh()
        own, at = torch.arange(start, end)[:, None], torch.arange(end)[None, :]
        unseen = (at > own) | (at <= own - (asked.window or end))
        scores = scores.masked_fill(unseen, float("-inf"))
        if self.sinks is not None:
            sinks = self.sinks.double().view(-1, 1, 1).expand(-1, length, 1)
            scores = torch.cat((scores, sinks), -1)
        return torch.einsum("htc,chd->thd", scores.softmax(-1)[..., :end], v)


def world(asked: Geometry, rows: Rows = MIXED) -> tuple[World, dict[int, tuple[int, int]]]:
    made = World.of(asked, [start + length for start, length in rows])
    return made, dict(enumerate(rows))


def check(kernel: Kernel, asked: Geometry) -> None:
    made, rows = world(asked)
    rtol, atol = (2e-2, 1e-2) if asked.dtype == BF16 else (1e-4, 1e-5)
    for (request, row), out in zip(rows.items(), made.attend(kernel, rows, padding=3), strict=True):
        torch.testing.assert_close(out.double(), made.expected(request, *row), rtol=rtol, atol=atol)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@SERVED
def test_shapes(kernel: Kernel, device: str, shape: dict[str, int]) -> None:
    check(kernel, replace(BASE, **shape))
    check(kernel, replace(BASE, **shape, dtype=BF16, kv_dtype=BF16))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@SERVED
def test_dtypes(kernel: Kernel, device: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check(kernel, replace(BASE, dtype=dtypes[0], kv_dtype=dtypes[1]))


@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("window", [None, 100])
@SERVED
def test_a_token_depends_on_what_it_sees_alone(
    kernel: Kernel, device: str, window: int | None, dtype: torch.dtype
) -> None:
    """Whatever is beside it in a step, however its request is cut into chunks, on any number of
    threads."""
    asked = replace(BASE, window=window, dtype=dtype, kv_dtype=dtype)
    made = World.of(asked, [1200, 90, 700])
    whole = [made.attend(kernel, {each: (0, len(made.q[each]))})[0] for each in range(3)]
    steps: list[dict[int, tuple[int, int]]] = [
        {0: (0, 1200), 1: (0, 90), 2: (0, 700)},
        {0: (1199, 1), 1: (89, 1), 2: (699, 1)},
        {2: (511, 1), 0: (512, 1), 1: (0, 1)},
        {2: (3, 697), 1: (63, 2)},
        {0: (700, 500)},
        {0: (1023, 7), 2: (640, 60)},
    ]
    for count in (1, 2, 5):
        with threads(count):
            for rows in steps:
                for (request, (start, length)), out in zip(
                    rows.items(), made.attend(kernel, rows), strict=True
                ):
                    expected = whole[request][start : start + length]
                    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@SERVED
def test_a_program_plans_a_step_once_for_its_layers(kernel: Kernel, device: str) -> None:
    """A program is made once: what changes with a step is in Step."""
    made, rows = world(BASE)
    room = kernel.make(BASE)
    assert isinstance(room, OnCpu)
    most = sum(length for _, length in rows.values())
    q = torch.empty(most, BASE.heads, BASE.head_dim)
    outs = [torch.empty(most, BASE.heads * BASE.head_dim) for _ in range(2)]
    whole = made.plan(rows)
    keys, values = made.pages(whole, {each: (a + b, 0) for each, (a, b) in rows.items()})
    layers = [room.attending(q, keys, values, None, out) for out in outs]
    program = cpu.Program([room.planning(), *layers])
    for step in (rows, dict(list(rows.items())[::2]), {8: rows[8]}):
        plan = made.plan(step)
        tokens = plan.cu_seqlens_q_host[-1]
        q[:tokens] = torch.cat([made.q[each][a : a + n] for each, (a, n) in step.items()])
        expected = torch.cat([made.expected(each, *row) for each, row in step.items()])
        for count in (1, 2):
            with threads(count):
                program.run(cpu.Step.of(tokens, plan))
            for out in outs:
                torch.testing.assert_close(
                    out[:tokens].view(expected.shape).double(), expected, rtol=1e-4, atol=1e-5
                )
                out.fill_(float("nan"))


@SERVED
def test_nan_of_a_request_stays_with_it(kernel: Kernel, device: str) -> None:
    made = World.of(BASE, [40, 40])
    made.k[0][3, 1, 5] = float("nan")
    spoiled, clean = made.attend(kernel, {0: (39, 1), 1: (39, 1)})
    assert spoiled[:, BASE.heads // 2 :].isnan().all() and clean.isfinite().all()
