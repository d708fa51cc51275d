"""Events from bytes, however they are cut on the way."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_engine.router.sse import Events, strip

STREAM = (
    b': pds 1 7\ndata: {"a":1}\n\n'
    b": pds 2 8 9\n\n"
    b'data: {"text": ": pds 1 2"}\n\n'
    b": ping\n\n"
    b": pds 1 3\ndata: [DONE]\n\n"
)
BARE = b'data: {"a":1}\n\ndata: {"text": ": pds 1 2"}\n\n: ping\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (b"data: 1\n\n", b"data: 1\n\n"),
        (b": pds 1 5\ndata: 1\n\n", b"data: 1\n\n"),
        (b": pds 1 5\ndata: 1\n\n: pds 1 6\ndata: 2\n\n", b"data: 1\n\ndata: 2\n\n"),
        (b": pds 0 \n\n", b""),
        (b": pds 1 5\n: pds 1 6\n\n", b""),
        (b'data: {"x": ": pds "}\n\n', b'data: {"x": ": pds "}\n\n'),
        (STREAM, BARE),
    ],
)
def test_the_journal_is_stripped_and_nothing_else(given_, expected):
    assert strip(given_) == expected
    assert Events().feed(given_) == expected


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_any_cutting_gives_the_same_whole_events(cuts):
    events, edges = Events(), [0, *sorted(cuts), len(STREAM)]
    pieces = [events.feed(STREAM[a:b]) for a, b in itertools.pairwise(edges)]
    assert all(piece.endswith(b"\n\n") for piece in pieces if piece)
    assert b"".join(pieces).replace(b"\n\n\n", b"\n\n") == BARE
    assert events.rest() == b""


def test_what_is_no_whole_event_waits_for_the_end():
    events = Events()
    assert events.feed(b"data: 1\n\ndata: {") == b"data: 1\n\n"
    assert events.feed(b"}\n") == b""
    assert events.rest() == b"data: {}\n"
