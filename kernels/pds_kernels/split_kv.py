"""What kernels of attention share on GPUs: a step's work on the device, and the join of pieces.

The result of a piece is its own softmax's weighted sum, and the logarithm of that softmax's
denominator. The join weighs the sums by these (Flash-Decoding, see `tiles`). Both are float32, and
each is written once and read once: of a context of n tokens in pieces of 256 about 3% more bytes
move than without pieces, for keys and values of 16 bits and four heads a key.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from pds_kernels.launching import launch
from pds_kernels.targets import SMS
from pds_kernels.tiles import JOIN_INTS, PIECE_INTS, Room, Work
from pds_kernels.upload import upload

_AT_ONCE = tl.constexpr(16)
"""Pieces that the join reads at once."""


@dataclass(frozen=True, slots=True)
class Heads:
    """How a launch's programs share the heads, and where their results lie."""

    heads: int
    groups: int
    """Programs of one piece."""
    group: int
    """Heads of one program; of the last one perhaps fewer."""
    dim: int
    """Columns of a head's result."""
    rows: int
    """Rows of a program: tokens times heads, padded."""

    @property
    def columns(self) -> int:
        """`dim` as a kernel has it."""
        return padded(self.dim)


@dataclass(frozen=True, slots=True)
class Listed:
    """A launch's work on the device."""

    pieces: Tensor
    """[pieces, PIECE_INTS] int32"""
    joins: Tensor
    """[joins, JOIN_INTS] int32"""
    slots: int


def listed(work: Work, device: torch.device) -> Listed:
    """`work` on `device`, in one copy."""
    pieces, joins = len(work.pieces), len(work.joins)
    numbers = upload(list(work.numbers()), torch.int32, device)
    each = numbers.split_with_sizes([pieces * PIECE_INTS, joins * JOIN_INTS])
    return Listed(each[0].view(pieces, PIECE_INTS), each[1].view(joins, JOIN_INTS), work.slots)


class Listing:
    """A launch's work in one place of the device, written anew for each step: as many programs
    start each time, and those without work end at once."""

    def __init__(self, room: Room, device: torch.device) -> None:
        self._room = room
        sizes = [room.pieces * PIECE_INTS, room.joins * JOIN_INTS]
        self._numbers = torch.zeros(sum(sizes), dtype=torch.int32, device=device)
        pieces, joins = self._numbers.split_with_sizes(sizes)
        self.work = Listed(pieces.view(-1, PIECE_INTS), joins.view(-1, JOIN_INTS), room.slots)

    def fill(self, work: Work) -> None:
        """Launches from now on do `work`."""
        pieces = [number for piece in work.pieces for number in piece.numbers()]
        joins = [number for join in work.joins for number in join.numbers()]
        pieces += [0] * (self._room.pieces * PIECE_INTS - len(pieces))
        joins += [0] * (self._room.joins * JOIN_INTS - len(joins))
        numbers = pieces + joins
        if len(numbers) != len(self._numbers) or work.slots > self._room.slots:
            raise ValueError(f"more work than {self._room} holds")
        self._numbers.copy_(upload(numbers, torch.int32, self._numbers.device))


class Partial:
    """Room for the results of pieces until they are joined. Every layer uses it anew."""

    def __init__(self, work: Listed, heads: Heads, device: torch.device) -> None:
        self._work, self._heads = work, heads
        shape = (work.slots, heads.groups, heads.rows)
        self.sums = torch.empty(*shape, heads.dim, dtype=torch.float32, device=device)
        """[slots, groups, rows, dim]"""
        self.weights = torch.empty(shape, dtype=torch.float32, device=device)
        """[slots, groups, rows]: logarithms to the base 2"""

    def join(self, out: Tensor) -> None:
        """Into `out`, [T, heads, dim], contiguous."""
        heads = self._heads
        launch(
            join_pieces,
            (len(self._work.joins) * heads.groups * heads.rows,),
            out,
            self.sums,
            self.weights,
            self._work.joins,
            heads=heads.heads,
            groups=heads.groups,
            group=heads.group,
            dim=heads.dim,
            rows=heads.rows,
            columns=heads.columns,
            num_warps=max(2, heads.columns // 64),
        )


def padded(number: int) -> int:
    """Rows or columns of a matrix as tensor cores take it: a power of two, 16 at least."""
    return max(16, int(triton.next_power_of_2(number)))


def token_stride(x: Tensor) -> int:
    """Elements from token to token of x, [T, heads, dim]. A lone token's stride means nothing and
    may be anything: it must not have a kernel compiled anew."""
    return max(int(x.stride(0)), x.shape[1] * x.shape[2])


def sms(device: torch.device) -> int:
    """Streaming multiprocessors of `device`; without a GPU those of the one that CI compiles for.
    No compiled kernel depends on it."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).multi_processor_count)
    return SMS[90]


@triton.jit
def join_pieces(
    out_at,
    sums_at,
    weights_at,
    joins_at,
    heads: tl.constexpr,
    groups: tl.constexpr,
    group: tl.constexpr,
    dim: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    """A row of a tile each: a token's head."""
    program = tl.program_id(0)
    row = program % rows
    of_group = program // rows % groups
    join = joins_at + program // rows // groups * 4
    end = tl.load(join + 1)
    token = tl.load(join + 2).to(tl.int64) + row // group
    head = of_group * group + row % group
    if (row < tl.load(join + 3) * group) & (head < heads):
        piece, column = tl.arange(0, _AT_ONCE), tl.arange(0, columns)
        there = column < dim
        top = -float("inf")
        total = 0.0
        out = tl.zeros((columns,), tl.float32)
        for first in range(tl.load(join), end, _AT_ONCE):
            slot = first + piece
            index = (slot.to(tl.int64) * groups + of_group) * rows + row
            weight = tl.load(weights_at + index, mask=slot < end, other=-float("inf"))
            higher = tl.maximum(top, tl.max(weight, 0))
            base = tl.where(higher == -float("inf"), 0.0, higher)
            share, kept = tl.exp2(weight - base), tl.exp2(top - base)
            sums = tl.load(
                sums_at + index[:, None] * dim + column[None, :],
                mask=(slot < end)[:, None] & there[None, :],
                other=0.0,
            )
            out = out * kept + tl.sum(sums * share[:, None], 0)
            total = total * kept + tl.sum(share, 0)
            top = higher
        tl.store(out_at + (token * heads + head) * dim + column, out / total, mask=there)
