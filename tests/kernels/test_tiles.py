"""What the programs of an attention kernel do in a step."""

import pytest
from attention_steps import plan_of
from hypothesis import given
from hypothesis import strategies as st
from pds_kernels.tiles import DIRECT, Cutting, Join, Piece, Room, Tile, Work, cut, room, tiles

FEW = Cutting(programs=8, each=2, least=16, step=8)


@pytest.mark.parametrize(
    ("rows", "most", "window", "expected"),
    [
        ([(0, 1)], 4, None, [Tile(0, 0, 1, 0, 0)]),
        ([(9, 1)], 4, 4, [Tile(0, 0, 1, 9, 6)]),
        ([(9, 1)], 4, 10, [Tile(0, 0, 1, 9, 0)]),
        # two tiles of one chunk; the second sees the first, and all but one token of the past
        ([(2, 6)], 4, 6, [Tile(0, 0, 4, 2, 0), Tile(0, 4, 2, 6, 1)]),
        ([(7, 1), (3, 2)], 8, None, [Tile(0, 0, 1, 7, 0), Tile(1, 1, 2, 3, 0)]),
    ],
)
def test_tiles(
    rows: list[tuple[int, int]], most: int, window: int | None, expected: list[Tile]
) -> None:
    assert tiles(plan_of(rows), range(len(rows)), most, window) == expected


def test_without_tiles_there_is_no_work() -> None:
    assert cut([], FEW) == Work() and Work().slots == 0


def test_a_long_context_is_cut_until_the_gpu_is_full() -> None:
    """Four pieces, for two heads of keys each, are eight programs."""
    tile = Tile(0, 0, 1, 99, 0)
    ends = [(0, 32, 0), (32, 64, 1), (64, 96, 2), (96, 100, 3)]
    pieces = tuple(Piece(tile, *each) for each in ends)
    assert cut([tile], FEW) == Work(pieces, (Join(0, 4, tile),))


def test_only_what_is_longer_than_its_share_is_cut_and_the_longest_piece_comes_first() -> None:
    short, long = Tile(0, 0, 1, 9, 0), Tile(1, 1, 1, 39, 0)
    assert cut([short, long], FEW) == Work(
        (
            Piece(long, 0, 16, 0),
            Piece(long, 16, 32, 1),
            Piece(short, 0, 10),
            Piece(long, 32, 40, 2),
        ),
        (Join(0, 3, long),),
    )


def test_enough_tiles_are_not_cut() -> None:
    many = [Tile(each, each, 1, 999, 0) for each in range(4)]
    assert all(piece.slot == DIRECT for piece in cut(many, FEW).pieces)


def test_a_piece_within_a_window_begins_where_the_window_does() -> None:
    tile = Tile(5, 2, 1, 99, 68)
    assert [piece.numbers() for piece in cut([tile], FEW).pieces] == [
        (5, 2, 1, 99, 68, 84, 0, 1),
        (5, 2, 1, 99, 84, 100, 1, 0),
    ]


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), min_size=1, max_size=6),
    st.sampled_from([None, 1, 7, 64]),
    st.builds(
        Cutting,
        programs=st.integers(1, 300),
        each=st.integers(1, 8),
        least=st.integers(1, 64),
        step=st.sampled_from([1, 16, 32]),
    ),
)
def test_pieces_cover_what_a_tile_sees_once(
    rows: list[tuple[int, int]], window: int | None, cutting: Cutting
) -> None:
    found = [
        Tile(at, at, tokens, start, max(0, start + 1 - window) if window else 0)
        for at, (start, tokens) in enumerate(rows)
    ]
    work = cut(found, cutting)
    for tile in found:
        mine = sorted((p for p in work.pieces if p.tile == tile), key=lambda piece: piece.begin)
        ends = [tile.begin, *(piece.end for piece in mine)]
        assert [piece.begin for piece in mine] == ends[:-1] and ends[-1] == tile.end
        joins = [join for join in work.joins if join.tile == tile]
        if len(mine) == 1:
            assert mine[0].slot == DIRECT and not joins
        else:
            (join,) = joins
            assert [piece.slot for piece in mine] == list(range(join.first, join.end))
    slots = sorted(piece.slot for piece in work.pieces if piece.slot != DIRECT)
    assert slots == list(range(work.slots))


def test_room_for_the_work_of_any_step() -> None:
    """FEW has four shares: one request in four pieces, or four that are cut in two at most."""
    assert room(1, FEW) == Room(pieces=5, joins=1, slots=8)
    assert room(64, FEW) == Room(pieces=68, joins=4, slots=8)
    assert room(3, Cutting(programs=1, each=8, least=16, step=16)) == Room(3, 0, 0)


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=40),
    st.builds(
        Cutting,
        programs=st.integers(1, 600),
        each=st.integers(1, 16),
        least=st.integers(1, 64),
        step=st.sampled_from([1, 16, 64]),
    ),
)
def test_no_step_has_more_work_than_there_is_room_for(contexts: list[int], how: Cutting) -> None:
    work = cut([Tile(at, at, 1, seen - 1, 0) for at, seen in enumerate(contexts)], how)
    most = room(len(contexts), how)
    assert len(work.pieces) <= most.pieces
    assert len(work.joins) <= most.joins
    assert work.slots <= most.slots
