import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_engine.text.stops import Stops


def searched(stops: Stops, pieces: list[str]) -> tuple[str, str, str | None]:
    """The text released, the text held, and the stop string found, of a text in pieces."""
    text, node, keep = "", 0, 0
    for piece in pieces:
        node, keep, end, matched = stops.scan(node, piece)
        text += piece[:end]
        if matched is not None:
            return text[: len(text) - len(matched)], "", matched
    return text[: len(text) - keep], text[len(text) - keep :], None


def naive(stops: list[str], text: str) -> tuple[str, str, str | None]:
    """The same by its definition, of the whole text."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], "", longest
    begun = [n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])]
    cut = len(text) - max(begun, default=0)
    return text[:cut], text[cut:], None


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("hello", [], ("hello", "", None)),
        ("hello", ["lo!"], ("hel", "lo", None)),
        ("hello", ["ell"], ("h", "", "ell")),
        ("hello", ["lo", "ell"], ("h", "", "ell")),  # the first to end, not the first named
        ("abcd", ["abcd", "bc"], ("a", "", "bc")),
        ("abcd", ["bc", "abc"], ("", "", "abc")),  # of those that end together, the longest
        ("aaab", ["aab"], ("a", "", "aab")),
        ("aaa", ["aab"], ("a", "aa", None)),
        ("x\n", ["\n\n", "\nQ"], ("x", "\n", None)),
        ("", ["a"], ("", "", None)),
        ("aab", ["ab", "ab"], ("a", "", "ab")),
    ],
)
def test_scan(text: str, stops: list[str], expected: tuple[str, str, str | None]):
    assert searched(Stops(stops), [text]) == expected
    assert searched(Stops(stops), list(text)) == expected


@given(
    st.lists(st.text("abc", max_size=6), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=6), max_size=5),
)
def test_any_cut_of_a_text_finds_what_the_definition_says(pieces: list[str], stops: list[str]):
    assert searched(Stops(stops), pieces) == naive(stops, "".join(pieces))


class Counted(Stops):
    """Counts the transitions that are looked up."""

    __slots__ = ("looks",)

    def _child(self, node: int, character: str) -> int | None:
        self.looks = getattr(self, "looks", 0) + 1
        return super()._child(node, character)


@pytest.mark.parametrize("kind", ["runs", "branches", "random"])
def test_the_work_grows_with_the_text_alone(kind: str):
    """Sixteen stop strings of 1,024 characters cost no more a character than one of two."""
    draw = random.Random(7)
    strings = {
        "runs": ["a" * 1023 + chr(0x100 + i) for i in range(16)],
        "branches": ["a" * (i * 64) + "b" * (1024 - i * 64) for i in range(16)],
        "random": ["".join(draw.choices("ab", k=1024)) for _ in range(16)],
    }[kind]
    stops = Counted(strings)
    assert stops.looks <= 4 * sum(map(len, strings))
    stops.looks = 0
    text = ("a" * 1022 + "b" + "ab" * 300) * 8
    node = 0
    for at in range(0, len(text), 3):
        node, keep, _, matched = stops.scan(node, text[at : at + 3])
        assert matched is None and keep < 1024
    assert stops.looks <= 3 * len(text)
