"""Requests wait in one queue, and are bound to the dp rank that can admit them."""

import pytest
from msgspec import structs
from pds_engine.messages import Room, Sampling, Submit
from pds_engine.server.placement import AFFINITY_SLACK, Placement

PAGE = 4


def wanted(submit: Submit) -> int:
    """Pages of its prompt, and of a token more."""
    return len(submit.prompt_ids) // PAGE + 1


def submit(name: str, length: int = 7, **keys: object) -> Submit:
    return Submit(
        request_id=name,
        prompt_ids=tuple(range(ord(name[0]), ord(name[0]) + length)),  # all begin differently
        sampling=Sampling(max_tokens=8),
        seed=0,
        **keys,
    )


def room(seen: int = 0, slots: int = 2, pages: int = 16, waiting: int = 0) -> Room:
    return Room(seen=seen, slots=slots, pages=pages, waiting=waiting)


def placement(dp: int = 2, **rooms: int) -> Placement:
    made = Placement(dp, wanted, max_waiting=4)
    for rank in range(dp):
        made.room(rank, room(**rooms))
    return made


def bound(made: Placement, **how: bool) -> list[tuple[int, str]]:
    return [(rank, each.request_id) for rank, each in made.bind(**how)]


def put(made: Placement, *names: str, **keys: int) -> None:
    for name in names:
        made.add(submit(name, **keys), 0.0)


def test_each_goes_to_the_rank_with_the_fewest_tokens():
    made = placement(pages=12)
    made.add(submit("long", 40), 0.0)
    put(made, "a", "b", "c")
    assert bound(made) == [(0, "long"), (1, "a"), (1, "b")]
    assert made.waiting == 1  # rank 0 has a slot, and not the pages


def test_it_waits_until_a_rank_can_admit_it_whichever_that_is():
    made = placement(slots=1)
    put(made, "a", "b", "c", "d")
    assert bound(made) == [(0, "a"), (1, "b")]
    made.ended("b")
    made.room(1, room(seen=1, slots=1))
    assert bound(made) == [(1, "c")]
    assert made.waiting == 1


def test_what_is_on_its_way_takes_from_the_room_that_was_said():
    made = placement(slots=2)
    put(made, "a", "b", "c", "d", "e")
    assert len(bound(made)) == 4
    made.room(0, room(seen=1, slots=1))  # it has seen one of two
    assert bound(made) == []
    made.room(0, room(seen=2, slots=1))
    assert bound(made) == [(0, "e")]


def test_a_rank_where_somebody_waits_gets_nothing():
    """What was preempted there goes first."""
    made = placement(waiting=1)
    put(made, "a", "b", "c")
    assert bound(made) == [(0, "a"), (1, "b")]  # idle as far as we know: they may say no
    assert made.waiting == 1


def test_an_urgent_request_goes_before_what_was_preempted():
    made = placement(slots=1)
    put(made, "a", "b", priority=5)
    assert len(bound(made)) == 2
    for rank in range(2):
        said = room(seen=1, slots=0, pages=0, waiting=1)
        made.room(rank, structs.replace(said, first=5, first_slots=1, first_pages=4))
    put(made, "c", priority=5)
    assert bound(made) == []
    put(made, "d", priority=-5)
    put(made, "e", length=30, priority=-5)  # more pages than there are
    assert bound(made) == [(0, "d")]


def test_an_idle_rank_takes_what_is_too_large_and_says_so_itself():
    made = placement(pages=2)
    put(made, "huge", length=400)
    assert bound(made) == [(0, "huge")]


def test_a_rank_that_holds_pages_without_a_request_is_the_last_choice():
    """A prefill rank's request ends when its first token is known, its hand-over later."""
    made = placement()
    put(made, "a", "b")
    assert bound(made) == [(0, "a"), (1, "b")]
    made.ended("a")
    made.room(0, room(seen=1, pages=0))  # its pages are still on their way to the decode side
    put(made, "c")
    assert bound(made) == [(1, "c")]


def test_the_first_is_not_overtaken():
    made = placement(slots=1)
    put(made, "a", "b")
    assert len(bound(made)) == 2
    made.add(submit("large", 400), 1.0)
    put(made, "small")
    made.add(submit("urgent", priority=-1), 9.0)
    made.room(0, room(seen=1, slots=1, pages=3))
    assert bound(made) == [(0, "urgent")]
    made.room(0, room(seen=2, slots=1, pages=3))
    assert bound(made) == [(0, "small")]  # older than `large`, which came at 1.0
    made.room(0, room(seen=3, slots=1, pages=3))
    assert bound(made) == []


def test_requests_that_begin_alike_go_to_one_rank_unless_it_has_much_more():
    made = placement(slots=64, pages=10_000)
    same = tuple(range(100))
    for name in "abc":
        made.add(
            Submit(request_id=name, prompt_ids=same, sampling=Sampling(max_tokens=1), seed=0), 0.0
        )
    assert bound(made) == [(0, "a"), (0, "b"), (0, "c")]
    put(made, "other", length=400)
    assert bound(made) == [(1, "other")]
    for name in ("d", "e"):
        made.add(
            Submit(request_id=name, prompt_ids=same * 12, sampling=Sampling(max_tokens=1), seed=0),
            0.0,
        )
    assert 400 + AFFINITY_SLACK < 1500
    assert bound(made) == [(0, "d"), (1, "e")]


def test_the_queue_is_bounded():
    made = placement(slots=1)
    put(made, "a", "b", "c", "d", "e", "f")
    assert len(bound(made)) == 2
    assert made.waiting == 4
    assert not made.accepts([submit("g")])
    assert made.accepts([submit("g", output_ids=(1,))])  # its client has a part of its answer
    assert not placement(slots=0).accepts([submit(name) for name in "abcde"])


def test_a_rank_could_take_it_at_once_although_nobody_may_wait():
    made = Placement(2, wanted, max_waiting=0)
    assert not made.accepts([submit("a")])
    made.room(0, room())
    assert made.accepts([submit("a")])
    assert not made.accepts([submit("a"), submit("b")])


def test_a_request_that_was_given_up_is_not_bound():
    made = placement(slots=1)
    put(made, "a", "b", "c", "d")
    assert len(bound(made)) == 2
    assert made.withdraw("c")
    assert not made.withdraw("a")
    made.ended("a")
    made.room(0, room(seen=1, slots=1))
    assert bound(made) == [(0, "d")]
    assert made.waiting == 0


def test_a_deadline_passes_in_the_queue():
    made = placement(slots=1)
    put(made, "a", "b")
    assert len(bound(made)) == 2
    made.add(submit("c", deadline=5.0), 0.0)
    put(made, "d")
    assert made.expired(4.9) == []
    assert [each.request_id for each in made.expired(5.0)] == ["c"]
    assert made.waiting == 1


def test_those_that_were_given_up_leave_the_heap_while_the_first_waits():
    made = placement(slots=0)
    put(made, "a", "b", "first")
    assert len(bound(made)) == 2
    for at in range(1000):
        put(made, f"x{at}")
        assert made.withdraw(f"x{at}")
    assert len(made._queue) < 100
    assert bound(made, all_of_them=True) == [(0, "first")]


def test_all_are_bound_where_no_more_may_be_sent_later():
    made = placement(slots=1)
    put(made, "a", "b", "c", "d")
    assert sorted(name for _, name in bound(made, all_of_them=True)) == ["a", "b", "c", "d"]
    assert made.waiting == 0


def test_it_is_not_ready_before_every_rank_has_spoken():
    made = Placement(2, wanted, max_waiting=4)
    made.room(0, room())
    assert not made.ready
    made.room(1, room())
    assert made.ready


@pytest.mark.parametrize("tokens", [0, 3])
def test_what_ended_counts_no_more(tokens):
    made = placement(dp=1, slots=8)
    put(made, "a")
    assert bound(made) == [(0, "a")]
    for _ in range(tokens):
        made.grew("a")
    load = made.loads[0]
    assert (load.requests, load.tokens) == (1, 7 + tokens)
    made.ended("a")
    assert (load.requests, load.tokens) == (0, 0)
    assert made.rank_of("a") is None


# ---- a prefill group: requests and offers -------------------------------------------------------


def prefill(**rooms: int) -> Placement:
    made = Placement(2, wanted, max_waiting=4, lease_seconds=30.0)
    for rank in range(2):
        made.room(rank, room(**rooms))
    return made


def test_a_request_is_bound_once_its_offer_has_come():
    made = prefill()
    assert not made.add(submit("a"), 0.0)
    assert bound(made) == []
    assert made.waiting == 1
    assert made.offered("a")
    assert bound(made) == [(0, "a")]


def test_an_offer_that_came_first_is_remembered_unless_it_is_withdrawn():
    made = prefill()
    assert not made.offered("a")
    assert made.add(submit("a"), 0.0)
    assert bound(made) == [(0, "a")]
    assert not made.offered("b")
    assert not made.withdrawn("b")
    assert not made.add(submit("b"), 0.0)


def test_a_request_that_waits_goes_with_its_offer():
    made = prefill(slots=1)
    for name in "abc":
        made.add(submit(name), 0.0)
        made.offered(name)
    assert [name for _, name in bound(made)] == ["a", "b"]
    assert made.withdrawn("c")  # it cannot go on
    assert not made.withdrawn("a")  # its rank has the offer
    assert made.waiting == 0


def test_a_request_whose_offer_does_not_come_is_forsaken():
    made = prefill()
    made.add(submit("a"), 10.0)
    assert made.forsaken(39.9) == []
    assert [each.request_id for each in made.forsaken(40.0)] == ["a"]
    assert made.waiting == 0


def test_a_deadline_passes_before_the_offer_comes():
    made = prefill()
    made.add(submit("a", deadline=5.0), 0.0)
    assert made.expired(4.9) == []
    assert [each.request_id for each in made.expired(5.0)] == ["a"]
    assert made.waiting == 0
    assert made.forsaken(40.0) == []
    assert not made.offered("a")


def test_in_a_drain_requests_are_bound_before_their_offers_come():
    """The scheduler takes an offer for a request that it has, and refuses all others."""
    made = prefill()
    made.add(submit("a"), 0.0)
    assert bound(made, all_of_them=True) == [(0, "a")]
