"""The page pool: who may write which page of the KV cache.

A page is free, referenced (by a request, a transfer, later the prefix cache), or quarantined: out
of everybody's reach, since a peer that did not answer may still write it. Promises are pages that
running requests will need and that nobody else is given; they are counted, not chosen.
"""

from collections.abc import Sequence

from pds_engine.errors import PdsError


class PagePool:
    """Pages 0 … total-1. Every misuse raises PdsError: an accounting error must never go on."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.promised = 0
        self.quarantined = 0
        self._free = list(range(total - 1, -1, -1))
        self._references = [0] * total
        self._barred: set[int] = set()

    @property
    def free(self) -> int:
        """Pages that nobody references; promises may cover some of them."""
        return len(self._free)

    @property
    def available(self) -> int:
        """Pages that can still be promised."""
        return len(self._free) - self.promised

    @property
    def used(self) -> int:
        """Pages that are not free, quarantined ones included."""
        return self.total - len(self._free)

    def promise(self, count: int) -> None:
        """Set `count` pages aside for later takes."""
        if count > self.available:
            raise PdsError(f"{count} pages promised, {self.available} are available")
        self.promised += count

    def withdraw(self, count: int) -> None:
        """Give `count` promised pages back untaken."""
        if count > self.promised:
            raise PdsError(f"{count} promises withdrawn, {self.promised} were given")
        self.promised -= count

    def take(self, count: int) -> tuple[int, ...]:
        """`count` promised pages, each with one reference."""
        if count > self.promised:
            raise PdsError(f"{count} pages taken, {self.promised} are promised")
        self.promised -= count
        pages = tuple(self._free.pop() for _ in range(count))
        for page in pages:
            self._references[page] = 1
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """One more reference to each page."""
        for page in pages:
            self._expect_referenced(page)
            self._references[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One reference less; a page without any is free."""
        for page in pages:
            self._expect_referenced(page)
            self._references[page] -= 1
            if not self._references[page]:
                self._free.append(page)

    def quarantine(self, pages: Sequence[int]) -> None:
        """The caller's references become the quarantine's: a peer may still write these pages."""
        for page in pages:
            self._expect_referenced(page)
            if self._references[page] != 1:
                raise PdsError(f"page {page} is quarantined while another holds it")
            self._barred.add(page)
        self.quarantined = len(self._barred)

    def readmit(self, pages: Sequence[int]) -> None:
        """Nobody can write these pages any more: out of quarantine, and free."""
        for page in pages:
            if page not in self._barred:
                raise PdsError(f"page {page} is not in quarantine")
            self._barred.remove(page)
        self.quarantined = len(self._barred)
        self.release(pages)

    def references(self, page: int) -> int:
        """How many hold the page."""
        return self._references[page]

    def is_quarantined(self, page: int) -> bool:
        """Whether a peer may still write the page."""
        return page in self._barred

    def _expect_referenced(self, page: int) -> None:
        if not self._references[page] or page in self._barred:
            state = "in quarantine" if page in self._barred else "free"
            raise PdsError(f"page {page} is {state}, but is handled as if held")
