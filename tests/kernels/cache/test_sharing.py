"""Who builds what next: by exact sequences, and in worlds of eight pods in virtual time."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_kernels.cache.sharing import PAUSE, Try, Watch, WorkQueue, order, place, seconds_left
from sharing_world import BUILD, LEASE, World

PODS, WORKERS = 8, 2
EVEN = [place(pod, PODS) for pod in range(PODS)]


def names(count: int) -> list[str]:
    return [f"k{number}" for number in range(count)]


@given(st.integers(1, 64), st.integers(0, 200))
def test_warm_ups_begin_at_even_distances_and_take_every_key(of: int, count: int) -> None:
    keys = list(range(count))
    for index in range(of):
        ordered = order(keys, place(index, of))
        assert sorted(ordered) == keys
        assert ordered[:1] == keys[index * count // of :][:1]


def test_stages_of_a_group_stay_at_even_distances() -> None:
    for group in ("chat-p-0-0", "chat-d-3-1", "local"):
        begin = sorted(place(index, 4, group) for index in range(4))
        assert {b - a for a, b in itertools.pairwise(begin)} == {Fraction(1, 4)}


def test_groups_with_consecutive_numbers_spread_without_knowing_how_many_there_are() -> None:
    for groups in (2, 4, 8, 16):
        begin = sorted(place(0, 1, f"chat-p-{number}-0") for number in range(groups))
        gaps = {b - a for a, b in itertools.pairwise(begin)}
        assert gaps == {Fraction(1, groups)}


def test_the_next_attempt_of_a_group_begins_where_the_first_did() -> None:
    assert place(1, 2, "chat-p-3-0") == place(1, 2, "chat-p-3-7") != place(1, 2, "chat-d-3-0")


def test_a_held_key_is_left_and_looked_at_when_nothing_else_is_left() -> None:
    queue = WorkQueue(["a", "b", "c"], lease=20, patience=900)
    assert queue.next(0) == Try("a")
    queue.held("a", b"x 1", 0.0)
    assert (queue.next(0.1), queue.next(0.1), queue.next(0.1)) == (Try("b"), Try("c"), None)
    assert queue.due(0.1) == pytest.approx(PAUSE - 0.1)
    queue.held("b", b"y 1", 0.2)
    assert [queue.next(PAUSE), queue.next(PAUSE)] == [Try("a"), None]
    queue.held("a", b"x 1", 0.3)
    queue.done("c")
    assert queue.left == 2
    assert queue.next(0.2 + PAUSE) == Try("b")  # the longer ago, the sooner again
    queue.done("b")
    assert queue.next(0.3 + PAUSE) == Try("a")
    queue.done("a")
    assert (queue.left, queue.next(9), queue.due(9)) == (0, None, None)


def test_a_lock_without_a_beat_is_evicted_after_a_lease() -> None:
    queue = WorkQueue(["a"], lease=20, patience=900)
    queue.next(0)
    queue.held("a", b"x 1", 0)
    assert queue.next(10) == Try("a")
    queue.held("a", b"x 2", 10)
    assert queue.next(21) == Try("a")  # it has beaten meanwhile
    queue.held("a", b"x 2", 21)
    assert queue.next(31) == Try("a", stale=b"x 2")
    queue.held("a", b"y 0", 31)  # another was faster
    assert queue.next(32) == Try("a")


def test_a_living_holder_is_waited_for_so_long_and_no_longer() -> None:
    queue = WorkQueue(["a"], lease=20, patience=100)
    queue.next(5)
    for second in range(5, 102, 5):
        queue.held("a", b"x %d" % second, second)
        assert queue.next(second + 4) == Try("a")
    queue.held("a", b"x", 106)
    assert queue.next(107) == Try("a", waited=100)


def test_a_lock_that_is_empty_is_evicted_too() -> None:
    """Its maker died between making it and writing it."""
    watch = Watch(lease=20, patience=100, now=0)
    watch.saw(b"", 1)
    assert (watch.stale(20), watch.stale(21)) == (None, b"")


def test_what_was_killed_is_built_once_more_after_all_others_and_alone() -> None:
    queue = WorkQueue(["a", "b", "c", "d"], lease=20, patience=900)
    assert [queue.next(0), queue.next(0)] == [Try("a"), Try("b")]
    assert queue.killed("a")
    assert [queue.next(1), queue.next(1)] == [Try("c"), Try("d")]
    queue.done("b")
    assert queue.next(2) is None
    queue.done("c")
    assert queue.next(2) is None
    queue.done("d")
    assert [queue.next(3), queue.next(3)] == [Try("a"), None]
    queue.held("a", b"by the dead", 3)  # its own lock, of the first time
    assert queue.next(3 + PAUSE) == Try("a")
    assert not queue.killed("a")
    assert queue.left == 0


def test_what_was_killed_runs_alone_also_if_it_was_held_since() -> None:
    queue = WorkQueue(["a", "b"], lease=20, patience=900)
    queue.next(0)
    queue.killed("a")
    queue.next(0)
    queue.held("b", b"x", 0)
    assert queue.next(1) == Try("a")
    queue.held("a", b"y", 1)
    assert queue.next(2) == Try("b")
    assert queue.next(2) is None
    queue.held("b", b"x", 2)
    assert [queue.next(2), queue.next(9)] == [Try("a"), None]


def test_seconds_left() -> None:
    assert seconds_left(3, [], 2) is None
    assert seconds_left(0, [], 2) == 0
    assert seconds_left(19, [4.0, 2.0], 2) == 28.5


COUNTS = [1, 2, 7, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 100, 128, 160, 200]


@pytest.mark.parametrize("count", COUNTS)
def test_eight_pods_build_each_key_once_and_none_waits_in_vain(count: int) -> None:
    for seed in range(6):
        for jitter in (0.0, 0.02, 0.3):
            world = World(seed, names(count), EVEN, WORKERS, jitter)
            took = world.run()
            assert took <= (math.ceil(count / (PODS * WORKERS)) + 1) * BUILD
            assert set(world.begun.values()) == {1} and len(world.begun) == count


def test_places_by_name_do_as_well_and_the_same_order_for_all_costs_looks() -> None:
    named = [place(i, 2, f"chat-{r}-{g}-0") for r in "pd" for g in range(2) for i in range(2)]
    looks = []
    for begin in (EVEN, named, [Fraction(0)] * PODS):
        world = World(1, names(160), begin, WORKERS, jitter=0.1)
        assert world.run() <= 11 * BUILD
        assert set(world.begun.values()) == {1}
        looks.append(world.looks)
    even, by_name, same = looks
    assert even < 1.25 * 160 * PODS and by_name < 1.5 * 160 * PODS
    assert same > 1.5 * even


@pytest.mark.parametrize("count", [16, 33, 64, 128])
def test_a_pod_that_dies_costs_a_lease(count: int) -> None:
    for seed in range(8):
        world = World(seed, names(count), EVEN, WORKERS, 0.1, kill=(seed, 5.0 + 3 * seed))
        took = world.run()
        others = (PODS - 1) * WORKERS
        assert took <= (math.ceil(count / others) + 1) * BUILD + LEASE + 2 * BUILD
        assert sum(world.begun.values()) <= count + WORKERS
        assert set(world.finished.values()) == {1}


def test_a_pod_that_never_delivers_is_waited_for_and_then_done_without() -> None:
    """Its holder beats on: the others compile that key for themselves."""
    world = World(0, names(4), EVEN[:3], workers=1, patience=60.0)
    world.hold("k1")
    assert world.run() <= 60 + 6 * BUILD
    assert world.begun == {"k0": 1, "k1": 3, "k2": 1, "k3": 1}
