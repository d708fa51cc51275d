import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_engine.text.stops import Scan, scan


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("hello", [], Scan("hello", "", None)),
        ("hello", ["lo!"], Scan("hel", "lo", None)),
        ("hello", ["ell"], Scan("h", "", "ell")),
        ("hello", ["lo", "ell"], Scan("h", "", "ell")),  # the first to appear, not the first named
        ("aaab", ["aab"], Scan("a", "", "aab")),
        ("aaa", ["aab"], Scan("a", "aa", None)),
        ("x\n", ["\n\n", "\nQ"], Scan("x", "\n", None)),
        ("", ["a"], Scan("", "", None)),
    ],
)
def test_scan(text: str, stops: list[str], expected: Scan):
    assert scan(text, stops) == expected


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_the_cut_of_a_text_changes_nothing(pieces: list[str], stops: list[str]):
    released, held = "", ""
    for piece in pieces:
        found = scan(held + piece, stops)
        released, held = released + found.release, found.held
        if found.matched:
            assert not any(stop in released for stop in stops)
            assert "".join(pieces).startswith(released + found.matched)
            return
    assert released + held == "".join(pieces)
    assert not any(stop in "".join(pieces) for stop in stops)
