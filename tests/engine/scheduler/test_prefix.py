from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_engine.errors import PdsError
from pds_engine.scheduler.pages import PagePool
from pds_engine.scheduler.prefix import PrefixCache, lengthen

A, B, C = b"a", b"b", b"c"


def chain_of(*ids: int, page_size: int = 2) -> list[bytes]:
    chain: list[bytes] = []
    lengthen(chain, ids, page_size)
    return chain


def test_a_digest_stands_for_all_tokens_up_to_its_pages_end() -> None:
    first = blake2b(b"\1\0\0\0\2\0\0\0", digest_size=16).digest()
    second = blake2b(first + b"\3\0\0\0\4\0\0\0", digest_size=16).digest()
    assert chain_of(1, 2, 3, 4, 5) == [first, second]  # the fifth does not fill a page
    assert chain_of(9, 2, 3, 4)[1] != second
    assert chain_of(1) == []


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 5), st.data())
def test_a_chain_grows_to_what_it_would_have_been(
    ids: list[int], size: int, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(ids)))
    chain: list[bytes] = []
    lengthen(chain, ids[:cut], size)
    lengthen(chain, ids[len(chain) * size :], size)
    assert chain == chain_of(*ids, page_size=size)


def test_the_longest_cached_beginning_is_found() -> None:
    cache = PrefixCache()
    cache.enter(A, 7)
    cache.enter(B, 3)
    assert cache.find([A, B, C]) == [7, 3]
    assert cache.find([B]) == [3]
    assert cache.find([C, A]) == []
    assert (len(cache), 7 in cache, 0 in cache) == (2, True, False)


def test_of_two_pages_with_the_same_content_the_first_is_kept() -> None:
    cache = PrefixCache()
    cache.enter(A, 7)
    cache.enter(A, 8)
    assert (cache.find([A]), 8 in cache) == ([7], False)


def cached(pool: PagePool, *digests: bytes) -> tuple[int, ...]:
    """Pages that hold a prefix, in its order, with one reference each."""
    pool.promise(len(digests))
    pages = pool.take(len(digests))
    for digest, page in zip(digests, pages, strict=True):
        pool.enter(digest, page)
    return pages


def taken(pool: PagePool, count: int) -> tuple[int, ...]:
    pool.promise(count)
    return pool.take(count)


def test_a_cached_page_without_references_is_free_and_stays_found() -> None:
    pool = PagePool(4)
    pages = cached(pool, A, B)
    assert (pool.free, pool.cache.idle) == (2, 0)
    pool.release(pages)
    assert (pool.free, pool.available, pool.used, pool.cache.idle) == (4, 4, 0, 2)
    pool.share(pool.cache.find([A, B]))
    assert (pool.free, pool.cache.idle, pool.references(pages[0])) == (2, 0, 1)


def test_blank_pages_are_taken_before_cached_ones_and_later_pages_before_earlier() -> None:
    pool = PagePool(5)
    pages = cached(pool, A, B, C)
    pool.release(pages)
    assert taken(pool, 2) == (3, 4)
    assert taken(pool, 2) == (pages[2], pages[1])
    assert pool.cache.find([A, B, C]) == [pages[0]]


def test_the_prefix_used_longest_ago_goes_first() -> None:
    pool = PagePool(4)
    old, new = cached(pool, A, B), cached(pool, C, b"d")
    pool.release(old)
    pool.release(new)
    pool.share(old)
    pool.release(old)
    assert taken(pool, 4) == (new[1], new[0], old[1], old[0])


def test_a_referenced_page_is_never_evicted() -> None:
    pool = PagePool(3)
    pages = cached(pool, A, B)
    pool.share(pages[:1])
    pool.release(pages)
    assert taken(pool, 2) == (2, pages[1])
    with pytest.raises(PdsError, match="1 pages promised, 0 are available"):
        pool.promise(1)
    assert pool.cache.find([A]) == [pages[0]]


def test_behind_an_evicted_page_nothing_is_found_until_it_is_there_again() -> None:
    """Two requests computed A at once; B and C are behind the copy that did not enter."""
    pool = PagePool(4)
    (first,) = cached(pool, A)
    other = cached(pool, A, B, C)
    assert other[0] not in pool.cache
    pool.release([first])
    assert taken(pool, 1) == (first,)
    assert pool.cache.find([A, B, C]) == []
    pool.release(other)
    assert taken(pool, 1) == (other[0],)
    pool.enter(A, other[0])
    assert pool.cache.find([A, B, C]) == [*other]


def test_misuse() -> None:
    pool = PagePool(2)
    (page,) = cached(pool, A)
    with pytest.raises(PdsError, match="page 0 enters the prefix cache a second time"):
        pool.enter(B, page)
    with pytest.raises(PdsError, match="page 1 is free"):
        pool.enter(B, 1)
    with pytest.raises(PdsError, match="page 0 is quarantined while others may read it"):
        pool.quarantine([page])
