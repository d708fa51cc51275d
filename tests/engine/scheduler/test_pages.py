import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_engine.errors import PdsError
from pds_engine.scheduler.pages import PagePool


def pool_with(taken: int, total: int = 8) -> tuple[PagePool, tuple[int, ...]]:
    pool = PagePool(total)
    pool.promise(taken)
    return pool, pool.take(taken)


def test_promises_are_kept_for_those_they_were_given_to() -> None:
    pool = PagePool(8)
    pool.promise(6)
    assert (pool.free, pool.available, pool.used) == (8, 2, 0)
    with pytest.raises(PdsError, match="3 pages promised, 2 are available"):
        pool.promise(3)
    assert pool.take(2) == (0, 1)
    pool.withdraw(4)
    assert (pool.free, pool.available, pool.used) == (6, 6, 2)


def test_a_shared_page_returns_with_its_last_reference() -> None:
    pool, pages = pool_with(2)
    pool.share(pages)
    pool.release(pages)
    assert (pool.used, pool.references(pages[0])) == (2, 1)
    pool.release(pages)
    assert pool.used == 0


def test_a_quarantined_page_is_out_of_reach_until_readmitted() -> None:
    pool, pages = pool_with(3)
    pool.quarantine(pages)
    assert (pool.quarantined, pool.used, pool.available) == (3, 3, 5)
    pool.readmit(pages)
    assert (pool.quarantined, pool.used, pool.available) == (0, 0, 8)


@pytest.mark.parametrize("misuse", ["release", "share", "quarantine"])
def test_a_free_page_is_nobodys_to_handle(misuse: str) -> None:
    pool, pages = pool_with(1)
    pool.release(pages)
    with pytest.raises(PdsError, match="page 0 is free"):
        getattr(pool, misuse)(pages)


@pytest.mark.parametrize("misuse", ["release", "share", "quarantine"])
def test_a_quarantined_page_is_nobodys_to_handle(misuse: str) -> None:
    pool, pages = pool_with(1)
    pool.quarantine(pages)
    with pytest.raises(PdsError, match="page 0 is in quarantine"):
        getattr(pool, misuse)(pages)


def test_other_misuse() -> None:
    pool, pages = pool_with(1)
    with pytest.raises(PdsError, match="0 are promised"):
        pool.take(1)
    with pytest.raises(PdsError, match="0 were given"):
        pool.withdraw(1)
    with pytest.raises(PdsError, match="page 0 is not in quarantine"):
        pool.readmit(pages)
    pool.share(pages)
    with pytest.raises(PdsError, match="while others may read it"):
        pool.quarantine(pages)


@given(st.lists(st.tuples(st.sampled_from(["take", "share", "release"]), st.integers(0, 99))))
def test_counts_agree_with_a_model(actions: list[tuple[str, int]]) -> None:
    pool, held = PagePool(16), list[int]()
    for action, number in actions:
        if action == "take" and pool.available:
            pool.promise(1)
            (page,) = pool.take(1)
            assert page not in held
            held.append(page)
        elif action == "share" and held:
            page = held[number % len(held)]
            pool.share((page,))
            held.append(page)
        elif action == "release" and held:
            pool.release((held.pop(number % len(held)),))
        assert pool.used == len(set(held))
        assert all(pool.references(page) == held.count(page) for page in range(16))
