"""Events from bytes, however they are cut on the way, and the journal beside them."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_engine.router.sse import EventReader

STREAM = (
    b': pds 1 7\ndata: {"a":1}\n\n'
    b': pds 3 8,9\ndata: {"text": ": pds 1 2"}\n\n'
    b": ping\n\n"
    b': pds 4 5 end\ndata: {"b":2}\n\n'
    b": pds 4  end\ndata: {}\n\n"
    b"data: [DONE]\n\n"
)
OPEN = b'data: {"a":1}\n\ndata: {"text": ": pds 1 2"}\n\n: ping\n\n'
LAST = b'data: {"b":2}\n\ndata: {}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("given_", "expected", "ids"),
    [
        (b": pds 1 5\ndata: 1\n\n", b"data: 1\n\n", [5]),
        (b": pds 1 5\ndata: 1\n\n: pds 2 6\ndata: 2\n\n", b"data: 1\n\ndata: 2\n\n", [5, 6]),
        (b": pds 2 5,6\ndata: 1\n\n", b"data: 1\n\n", [5, 6]),
        (b": pds 1 5 end\ndata: 1\n\n", b"", []),
        (b": pds 1 5\n\n", b"", [5]),
        (b'data: {"x": ": pds "}\n\n', b'data: {"x": ": pds "}\n\n', []),
        (STREAM, OPEN, [7, 8, 9]),
    ],
)
def test_the_journal_is_read_and_nothing_of_it_sent_on(given_, expected, ids):
    events = EventReader()
    assert events.feed(given_) == expected
    assert list(events.journal.ids) == ids


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_any_cutting_gives_the_same_whole_events(cuts):
    events, edges = EventReader(), [0, *sorted(cuts), len(STREAM)]
    pieces = [events.feed(STREAM[a:b]) for a, b in itertools.pairwise(edges)]
    assert all(piece.endswith(b"\n\n") for piece in pieces if piece)
    assert b"".join(pieces) == OPEN
    assert list(events.journal.ids) == [7, 8, 9]
    assert events.journal.complete
    assert events.rest() == LAST


def test_what_was_not_sent_is_not_in_the_journal():
    """Wherever the stream breaks, the tokens and the events sent are the same ones."""
    for end in range(len(STREAM) + 1):
        events = EventReader()
        given = events.feed(STREAM[:end])
        assert len(events.journal.ids) == {0: 0, 1: 1, 2: 3}[given.count(b"data:")]
        events.cut()
        assert events.rest() == b""


def test_what_is_no_whole_event_waits_for_the_end():
    events = EventReader()
    assert events.feed(b"data: 1\n\ndata: {") == b"data: 1\n\n"
    assert events.feed(b"}\n") == b""
    assert events.rest() == b"data: {}\n"


@pytest.mark.parametrize(
    ("lines", "complete"),
    [
        (b": pds 1 5\ndata: 1\n\n: ping\n\n", True),
        (b"data: 1\n\n", False),
        (b": pds 2 5\ndata: 1\n\n", False),  # one is missing
        (b": pds 1 5\ndata: 1\n\n: pds 1 5\ndata: 1\n\n", False),  # one came twice
        (b": pds 1 x\ndata: 1\n\n", False),
        (b": pds x\ndata: 1\n\n", False),
        (b": pds 1 5000000000\ndata: 1\n\n", False),
    ],
)
def test_a_journal_with_gaps_resumes_nothing(lines, complete):
    events = EventReader()
    events.feed(lines)
    assert events.journal.complete == complete


def test_an_engine_that_gives_up_says_so_to_the_router_alone():
    events = EventReader()
    given = events.feed(b': pds 1 5\ndata: 1\n\n: pds failed 503 {"error": {"code": "a b"}}\n\n')
    assert given == b"data: 1\n\n"
    assert events.failed == (503, b'{"error": {"code": "a b"}}')
    events.cut()
    assert events.failed is None
