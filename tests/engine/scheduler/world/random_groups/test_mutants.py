"""Mistakes in the prefix cache: in random groups each of them gives a wrong token.

The audit of references is switched off here, so that what the workers read has to show it, or the
pool's own refusal to give a held page away.
"""

import random
from collections.abc import Callable, Sequence

import pytest
from pds_engine.errors import PdsError
from pds_engine.scheduler import allocation
from pds_engine.scheduler.allocation import Allocator
from pds_engine.scheduler.handover_d import DecodeSide
from pds_engine.scheduler.handover_p import PrefillSide
from pds_engine.scheduler.pages import PagePool
from pds_engine.scheduler.prefix import PrefixCache, lengthen
from pds_engine.scheduler.request import Request
from scheduling.groups import random_groups

Mutate = Callable[[pytest.MonkeyPatch], None]
RUNS = 60
NOTICED = "a wrong token|given away while it is held"


def the_last_token_counts_as_computed(patch: pytest.MonkeyPatch) -> None:
    """Its id is known, its keys come with the next step, and for the last one there is none."""
    right = Allocator.remember
    patch.setattr(Allocator, "remember", lambda self, r, tokens: right(self, r, tokens + 1))


def pages_enter_when_they_are_offered(patch: pytest.MonkeyPatch) -> None:
    """P has not written them yet, and may never do."""
    right = DecodeSide.offer

    def offer(self: DecodeSide, request: Request, now: float) -> None:
        right(self, request, now)
        self._ledger.allocator.remember(request, request.context_len)

    patch.setattr(DecodeSide, "offer", offer)
    patch.setattr(PagePool, "quarantine", lambda self, pages: None)
    patch.setattr(PagePool, "readmit", PagePool.release)


def the_tokens_before_a_page_do_not_count(patch: pytest.MonkeyPatch) -> None:
    def alone(chain: list[bytes], ids: Sequence[int], page_size: int) -> None:
        for at in range(0, len(ids) // page_size * page_size, page_size):
            lengthen(page := [], ids[at : at + page_size], page_size)
            chain += page

    patch.setattr(allocation, "lengthen", alone)


def a_page_in_use_is_evicted(patch: pytest.MonkeyPatch) -> None:
    """It stays the next to go while requests reference it, and the pool does not look."""
    right = PagePool.take

    def take(self: PagePool, count: int) -> tuple[int, ...]:
        for page in list(self.cache._idle)[: max(count - len(self._blank), 0)]:
            self._references[page] = 0
        return right(self, count)

    patch.setattr(PrefixCache, "hold", lambda self, page: None)
    patch.setattr(PagePool, "take", take)
    patch.setattr(PagePool, "_expect_referenced", lambda self, page: None)


def p_does_not_push_what_it_found(patch: pytest.MonkeyPatch) -> None:
    right = PrefillSide.open

    def begin(self: PrefillSide, request: Request) -> None:
        right(self, request)
        self.transfers[request.id].posted = request.shared

    patch.setattr(PrefillSide, "open", begin)


@pytest.mark.parametrize(
    ("mutate", "pair"),
    [
        (the_last_token_counts_as_computed, False),
        (the_last_token_counts_as_computed, True),
        (pages_enter_when_they_are_offered, True),
        (the_tokens_before_a_page_do_not_count, False),
        (a_page_in_use_is_evicted, False),
        (p_does_not_push_what_it_found, True),
    ],
)
def test_a_mistake_is_noticed(monkeypatch: pytest.MonkeyPatch, mutate: Mutate, pair: bool) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, PdsError), match=NOTICED):
        run_some(pair)


def run_some(pair: bool) -> None:
    for seed in range(RUNS):
        groups = random_groups(random.Random(seed), pair=pair, pp=1, tp=1, fenced=True, mishaps=2.0)
        groups.audit = lambda node: None
        groups.run(events=500)
