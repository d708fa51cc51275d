"""Stop strings across the borders of tokens: text that may begin one is held back.

Aho and Corasick's automaton (Efficient string matching, CACM 18, 1975). It is built once
from a request's stop strings. After that, a character costs the same however many and however long
they are, in the mean over a text. The stop string that ends first counts, and the longest of those
that end together: so it does not matter where tokens cut the text.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Scan(NamedTuple):
    """The result of scanning a piece of text."""

    node: int
    """The automaton's node after this piece, and before the next."""
    keep: int
    """So many last characters may begin a stop string; fewer than the longest has."""
    end: int
    """How much of the piece was scanned: all of it, or up to the stop string's end."""
    matched: str | None
    """The stop string found."""


class Stops:
    """The automaton of these strings, none of them empty. Begin at node 0.

    A node is a beginning of a stop string. Nodes along one string are numbered on, so that the
    way from each to the next is a character of `_next`; `_branches` has the other ways.
    """

    __slots__ = ("_branches", "_depth", "_fail", "_longest", "_next", "strings")

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self._next = [""]
        self._branches: dict[tuple[int, str], int] = {}
        self._depth = [0]
        """Characters of each node."""
        self._longest = [-1]
        """The longest stop string that each node ends with, as its place in `strings`."""
        came = [(0, "")]
        for place, string in enumerate(self.strings):
            node = 0
            for character in string:
                child = self._child(node, character)
                node = self._add(node, character, came) if child is None else child
            self._longest[node] = place
        self._fail = [0] * len(self._next)
        """The longest other node that each node ends with."""
        for node in sorted(range(1, len(came)), key=self._depth.__getitem__):
            parent, character = came[node]
            if parent:
                self._fail[node] = self.step(self._fail[parent], character)
            if self._longest[node] < 0:
                self._longest[node] = self._longest[self._fail[node]]

    def __bool__(self) -> bool:
        return bool(self.strings)

    def step(self, node: int, character: str) -> int:
        """The longest node that `node` followed by `character` ends with."""
        while (child := self._child(node, character)) is None:
            if not node:
                return 0
            node = self._fail[node]
        return child

    def scan(self, node: int, text: str) -> Scan:
        """Go on from `node` with the characters of `text`, up to the end of a stop string."""
        for at, character in enumerate(text):
            node = self.step(node, character)
            if (place := self._longest[node]) >= 0:
                return Scan(0, 0, at + 1, self.strings[place])
        return Scan(node, self._depth[node], len(text), None)

    def _child(self, node: int, character: str) -> int | None:
        if self._next[node] == character:
            return node + 1
        return self._branches.get((node, character))

    def _add(self, parent: int, character: str, came: list[tuple[int, str]]) -> int:
        node = len(came)
        came.append((parent, character))
        if node == parent + 1:
            self._next[parent] = character
        else:
            self._branches[parent, character] = node
        self._next.append("")
        self._depth.append(self._depth[parent] + 1)
        self._longest.append(-1)
        return node
