"""Groups that fail, are evicted, or vanish: what the plan makes of it, round by round."""

import pytest
from pds_operator.decide.actions import Delete, Problem
from worlds import World, digest, pod_names, raw_spec

REVISION = digest(raw_spec())


def test_a_dead_rank_brings_its_whole_group_back():
    raw = raw_spec(prefill={"replicas": 1, "parallelism": {"pp": 2}})
    world = World(raw)
    world.settle()
    assert pod_names(world) == ["chat-d-0-0-0", "chat-p-0-0-0", "chat-p-0-0-1"]
    world.fail("chat-p-0-0-1")
    assert world.round() == ["delete pod chat-p-0-0-0", "chat-p-0-1-0", "chat-p-0-1-1"]
    assert world.round() == ["delete pod chat-p-0-0-1", "unroute chat-d-0-0-0"]


def test_failures_in_a_row_wait_longer_each_time(world):
    waits = []
    for _ in range(8):
        attempt = max(pod.attempt for pod in world.pods.values() if pod.role == "decode")
        world.fail(f"chat-d-0-{attempt}-0")
        start = world.now
        while not (made := [text for text in world.round() if "-d-0-" in text]):
            world.now = world.plan().wake or pytest.fail("it would sleep for ever")
        assert made == [f"chat-d-0-{attempt + 1}-0"]
        waits.append(world.now - start)
        world.round()
        world.bury()
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]


def test_an_attempt_that_was_up_for_long_starts_from_nothing_again(world):
    world.change("chat-d-0-0-0", failures=5)
    world.now += 601
    world.fail("chat-d-0-0-0")
    assert "chat-d-0-1-0" in world.round()
    assert world.pods["chat-d-0-1-0"].failures == 1


def test_a_configuration_error_is_reported_and_not_tried_again(world):
    world.fail("chat-d-0-0-0", exit_code=78, message='{"error": "pp 9 above 4 layers"}')
    world.round()
    world.now += 10_000
    assert world.round() == []
    assert world.plan().problems == (
        Problem("ConfigurationError", 'decode: {"error": "pp 9 above 4 layers"}'),
    )
    world.raw = raw_spec(engine={"chunkSize": 64})
    world.settle()
    assert not any(pod.failed for pod in world.pods.values())


def test_a_pod_that_somebody_deletes_is_replaced_before_it_is_gone(world):
    world.change("chat-p-0-0-0", deleting=True)
    assert world.round() == ["chat-p-0-1-0"]
    world.turn_ready()
    assert world.round() == ["route chat-p-0-1-0"]
    world.bury()
    assert world.plan().actions == ()


def test_the_other_ranks_of_an_evicted_pod_drain_with_it():
    world = World(raw_spec(prefill={"replicas": 1, "parallelism": {"pp": 2}}))
    world.settle()
    world.change("chat-p-0-0-1", deleting=True)
    assert world.round() == ["chat-p-0-1-0", "chat-p-0-1-1"]
    [delete] = [item for item in world.plan().actions if isinstance(item, Delete)]
    assert (delete.name, delete.grace) == ("chat-p-0-0-0", None)  # its own grace: SIGTERM drains


def test_a_vanished_pod_ends_its_group(world):
    raw = raw_spec(prefill={"replicas": 1, "parallelism": {"pp": 2}})
    world = World(raw)
    world.settle()
    del world.pods["chat-p-0-0-1"]
    assert world.round() == ["delete pod chat-p-0-0-0", "chat-p-0-1-0", "chat-p-0-1-1"]


def test_a_group_that_was_made_in_part_is_completed():
    world = World(raw_spec(prefill={"replicas": 1, "parallelism": {"pp": 2}}))
    world.round()
    world.round()
    del world.pods["chat-p-0-0-1"]
    assert world.round() == ["chat-p-0-0-1"]
