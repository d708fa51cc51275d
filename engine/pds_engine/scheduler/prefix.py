"""The prefix cache: pages whose keys and values are known to belong to given tokens. Pure.

A page's keys depend on all tokens before it as well as on its own, so a page is found by a digest
that chains those of all pages before it. Nothing else decides them in one group (it has one model
and one KV format); what does one day must enter the chain's root.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b

from pds_engine.scheduler.digest import words


def lengthen(chain: list[bytes], ids: Sequence[int], page_size: int) -> None:
    """Append to `chain` a digest for each full page of `ids`, the tokens that follow the chain's.

    A digest is 16 bytes of BLAKE2b over the one before it (none: nothing) and the page's ids.
    """
    full = len(ids) // page_size * page_size
    data, width = words(ids[:full]), 4 * page_size
    parent = chain[-1] if chain else b""
    for at in range(0, len(data), width):
        parent = blake2b(parent + data[at : at + width], digest_size=16).digest()
        chain.append(parent)


class PrefixCache:
    """Pages by the digest of all tokens up to their end, and which of them nobody references.

    Idle pages are evicted the least recently used first. Requests give a prefix's later pages back
    before its earlier ones, and reference the earlier ones whenever they use a later one: so
    children go before their parents. (Two requests that compute one prefix at the same time keep a
    page each, and only the first enters; a page behind the other's own may then outlive its parent.
    It is found again with the parent, or evicted in its turn.) Where a window moves, requests give
    the earlier pages back first; these are evicted first, and later pages are found without them.
    """

    def __init__(self) -> None:
        self._pages: dict[bytes, int] = {}
        self._digests: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, page: int) -> bool:
        return page in self._digests

    @property
    def idle(self) -> int:
        """Cached pages that nobody references: the next ones to be evicted."""
        return len(self._idle)

    def find(self, chain: Iterable[bytes]) -> list[int]:
        """The pages of the longest cached beginning of `chain`."""
        pages = []
        for digest in chain:
            page = self._pages.get(digest)
            if page is None:
                break
            pages.append(page)
        return pages

    def find_window(
        self, chain: Sequence[bytes], behind: Callable[[int], int]
    ) -> tuple[int, list[int]]:
        """The longest beginning of `chain` that is cached as far as anybody still reads it.

        Args:
            behind: how many pages nobody reads any more that goes on after so many pages.

        Returns:
            the number of the first page that is read, and the pages from it on.
        """
        run = longest = 0
        for end, digest in enumerate(chain, 1):
            if digest not in self._pages:
                run = end
            elif behind(end) >= run:
                longest = end
        first = behind(longest)
        return first, [self._pages[digest] for digest in chain[first:longest]]

    def enter(self, digest: bytes, page: int) -> None:
        """`page`, which its holder has filled for good, is the one found by `digest`.

        Of two pages with the same content the first is kept; the other stays its holder's own.
        """
        if digest not in self._pages:
            self._pages[digest] = page
            self._digests[page] = digest

    def hold(self, page: int) -> None:
        """Somebody references the idle page again."""
        del self._idle[page]

    def rest(self, page: int) -> None:
        """Nobody references the cached page any more: it is the last one to be evicted."""
        self._idle[page] = None

    def forget(self, page: int) -> None:
        """Nobody is to find this page again, which somebody references; cached or not."""
        digest = self._digests.pop(page, None)
        if digest is not None:
            del self._pages[digest]

    def evict(self) -> int:
        """The page idle for longest, which is no longer cached."""
        page, _ = self._idle.popitem(last=False)
        del self._pages[self._digests.pop(page)]
        return page
