"""What the programs of an attention kernel do in a step: a plan that is data, made on the host.

A tile is some tokens of one request, and with them all heads that share a key. Where too few tiles
are there to fill a GPU, their contexts are cut into pieces that are attended to side by side and
joined afterwards (Dao, Haziza, Massa, Sizov, "Flash-Decoding for long-context inference", 2023). As
pieces are about equally long, one long request does not keep a step waiting.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from pds_kernels.plan import AttentionPlan

PIECE_INTS, JOIN_INTS = 8, 4
"""Numbers of int32 that a kernel reads of each. Multiples of 4, so that any part of a table of them
is aligned to 16 bytes."""
DIRECT = -1
"""In place of a slot: the piece is its whole tile, and its result needs no join."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Tokens of one request that a program attends for, and what they see."""

    request: int
    token: int
    """Where among the step's tokens the first of them is."""
    tokens: int
    position: int
    """Of the first of them in the request's context."""
    begin: int
    """The first position that any of them sees."""

    @property
    def end(self) -> int:
        """One past the last position that any of them sees."""
        return self.position + self.tokens

    @property
    def seen(self) -> int:
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Piece:
    """A tile, and the positions begin … end-1 of what it sees."""

    tile: Tile
    begin: int
    end: int
    slot: int = DIRECT
    """Where its result is kept until it is joined."""

    def numbers(self) -> tuple[int, ...]:
        """As a kernel reads it; the last says whether it is the first piece of its tile."""
        tile = self.tile
        first = int(self.begin == tile.begin)
        where = tile.request, tile.token, tile.tokens, tile.position
        return *where, self.begin, self.end, self.slot, first


@dataclass(frozen=True, slots=True)
class Join:
    """A tile of several pieces: those in slots first … end-1."""

    first: int
    end: int
    tile: Tile

    def numbers(self) -> tuple[int, ...]:
        """As a kernel reads it."""
        return self.first, self.end, self.tile.token, self.tile.tokens


@dataclass(frozen=True, slots=True)
class Work:
    """Everything that one launch does, the longest pieces first."""

    pieces: tuple[Piece, ...] = ()
    joins: tuple[Join, ...] = ()

    @property
    def slots(self) -> int:
        return self.joins[-1].end if self.joins else 0

    def numbers(self) -> Iterable[int]:
        """All pieces and then all joins, as kernels read them."""
        pieces = (piece.numbers() for piece in self.pieces)
        joins = (join.numbers() for join in self.joins)
        return chain(chain.from_iterable(pieces), chain.from_iterable(joins))


@dataclass(frozen=True, slots=True)
class Cutting:
    """How finely contexts are cut."""

    programs: int
    """That fill the GPU."""
    each: int
    """Programs of one piece: it has one for each head of keys."""
    least: int
    """Positions of the shortest piece that is worth a join."""
    step: int
    """Positions that a program reads at once. A piece is a whole number of them; the last need not
    be."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much work there may be."""

    pieces: int
    joins: int
    slots: int


def room(requests: int, cutting: Cutting) -> Room:
    """The most that `cut` makes of a tile for each of so many requests, whatever their contexts.

    A tile of the share x of all programs is cut into ⌈x⌉ pieces at most: fewer than x + 1, and
    where that is two or more, fewer than 2x. The shares sum up to 1/`each` of the programs.
    """
    shares = cutting.programs // cutting.each
    return Room(requests + shares, min(requests, shares), 2 * shares)


def tiles(
    plan: AttentionPlan, requests: Iterable[int], most: int, window: int | None = None
) -> list[Tile]:
    """The tokens of `requests` in tiles of `most` at most."""
    found = []
    for request in requests:
        token, end = plan.cu_seqlens_q_host[request : request + 2]
        start = plan.seq_lens_host[request] - end
        for first in range(token, end, most):
            position = start + first
            begin = max(0, position + 1 - window) if window else 0
            found.append(Tile(request, first, min(most, end - first), position, begin))
    return found


def cut(found: Sequence[Tile], cutting: Cutting) -> Work:
    """`found` in pieces: none is cut whose programs are as many as the GPU holds."""
    if not found:
        return Work()
    everything = sum(tile.seen for tile in found) * cutting.each
    fair = -(-everything // cutting.programs)
    pieces: list[Piece] = []
    joins: list[Join] = []
    slot = 0
    for tile in found:
        parts = -(-tile.seen // max(fair, cutting.least))
        length = _rounded(-(-tile.seen // parts), cutting.step)
        begins = range(tile.begin, tile.end, length)
        if len(begins) == 1:
            pieces.append(Piece(tile, tile.begin, tile.end))
            continue
        pieces += [
            Piece(tile, begin, min(begin + length, tile.end), slot + number)
            for number, begin in enumerate(begins)
        ]
        joins.append(Join(slot, slot + len(begins), tile))
        slot += len(begins)
    return Work(tuple(sorted(pieces, key=_length, reverse=True)), tuple(joins))


def _rounded(number: int, step: int) -> int:
    return -(-number // step) * step


def _length(piece: Piece) -> int:
    return piece.end - piece.begin
