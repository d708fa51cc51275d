"""The page pool: who may write which page of the KV cache.

A page is free, referenced (by a request or a transfer, by several where a prefix is shared), or
quarantined: out of everybody's reach, since a peer that did not answer may still write it. A free
page may hold a cached prefix until it is taken for something else. Promises are pages that running
requests will need and that nobody else is given; they are counted, not chosen.
"""

from collections.abc import Sequence

from pds_engine.errors import PdsError
from pds_engine.scheduler.prefix import PrefixCache


class PagePool:
    """Pages 0 … total-1. Every misuse raises PdsError: an accounting error must never go on.

    Args:
        each_pays: a page that several hold counts for each of them. Whoever gives a page back is
            then sure of another one, though others go on holding that page (sliding windows).
    """

    def __init__(self, total: int, *, each_pays: bool = False) -> None:
        self.total = total
        self.each_pays = each_pays
        self.promised = 0
        self.quarantined = 0
        self.cache = PrefixCache()
        self._blank = list(range(total - 1, -1, -1))
        self._references = [0] * total
        self._held = 0
        """All references."""
        self._barred: set[int] = set()

    @property
    def free(self) -> int:
        """Pages that nobody references, cached or not; promises may cover some of them."""
        return len(self._blank) + self.cache.idle

    @property
    def available(self) -> int:
        """Pages that can still be promised."""
        return (self.total - self._held if self.each_pays else self.free) - self.promised

    @property
    def used(self) -> int:
        """Pages that are not free, quarantined ones included."""
        return self.total - self.free

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
        """`count` promised pages, each with one reference; cached ones only when no others are."""
        if count > self.promised:
            raise PdsError(f"{count} pages taken, {self.promised} are promised")
        self.promised -= count
        blank, cache = self._blank, self.cache
        pages = tuple(blank.pop() if blank else cache.evict() for _ in range(count))
        for page in pages:
            if self._references[page]:
                raise PdsError(f"page {page} is given away while it is held")
            self._references[page] = 1
        self._held += count
        return pages

    def share(self, pages: Sequence[int]) -> None:
        """One more reference to each page, which others hold or the cache does."""
        for page in pages:
            if not self._references[page] and page in self.cache:
                self.cache.hold(page)
            else:
                self._expect_referenced(page)
            self._references[page] += 1
        self._held += len(pages)

    def enter(self, digest: bytes, page: int) -> None:
        """The page holds what `digest` stands for, and is not written again while it does."""
        self._expect_referenced(page)
        if page in self.cache:
            raise PdsError(f"page {page} enters the prefix cache a second time")
        self.cache.enter(digest, page)

    def release(self, pages: Sequence[int]) -> None:
        """One reference less; a page without any is free. `pages` are in the order of a prefix."""
        idle: list[int] = []
        for page in pages:
            self._expect_referenced(page)
            self._references[page] -= 1
            if not self._references[page]:
                (idle if page in self.cache else self._blank).append(page)
        self._held -= len(pages)
        for page in reversed(idle):
            self.cache.rest(page)

    def forget(self, digest: bytes) -> None:
        """Nobody is to find a page by `digest` again, whether somebody holds it or not."""
        for page in self.cache.find([digest]):
            if not self._references[page]:
                self.cache.hold(page)
                self._blank.append(page)
            self.cache.forget(page)

    def quarantine(self, pages: Sequence[int]) -> None:
        """The caller's references become the quarantine's: a peer may still write these pages."""
        for page in pages:
            self._expect_referenced(page)
            if self._references[page] != 1 or page in self.cache:
                raise PdsError(f"page {page} is quarantined while others may read it")
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

    def regains(self, page: int, given_up: int = 0) -> bool:
        """Whether one reference less to the page, after `given_up` others, makes one available."""
        return self.each_pays or self._references[page] - given_up == 1

    def is_quarantined(self, page: int) -> bool:
        """Whether a peer may still write the page."""
        return page in self._barred

    def _expect_referenced(self, page: int) -> None:
        if not self._references[page] or page in self._barred:
            state = "in quarantine" if page in self._barred else "free"
            raise PdsError(f"page {page} is {state}, but is handled as if held")
