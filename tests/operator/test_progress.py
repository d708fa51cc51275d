"""Rollouts that do not get on."""

import pytest
from pds_operator.decide.status import status
from worlds import NOW, World, desired, digest, raw_spec

ROLLOUT = {"drainSeconds": 60, "progressDeadlineSeconds": 300, "autoRollback": False}
START = NOW + 60


@pytest.fixture
def world() -> World:
    """Whose new revision never starts."""
    world = World(raw_spec())
    world.settle()
    world.now = START
    world.schedules = True
    world.raw = raw_spec(image="engine:2", rollout=ROLLOUT)
    world.round()
    world.round()
    return world


def progressing(world: World) -> tuple[str, str, str]:
    written = status(world.observed(), desired(world.raw), world.plan(), {}, world.now)
    [found] = [item for item in written["conditions"] if item["type"] == "Progressing"]
    return found["status"], found["reason"], found["message"]


def test_a_rollout_that_does_not_get_on_is_reported_at_its_deadline(world):
    world.change("chat-p-2-0-0", message="ImagePullBackOff: no such tag")
    world.wait(299)
    assert progressing(world)[:2] == ("True", "RollingOut")
    assert world.plan().wake == START + 300
    world.wait(1)
    state, reason, message = progressing(world)
    assert (state, reason) == ("False", "ProgressDeadlineExceeded")
    assert message.startswith(
        "no progress since 2023-11-14T22:14:20Z: "
        "chat-p-2-0-0: ImagePullBackOff: no such tag; chat-d-1-0-0: not ready; prefill 2 ready"
    )


def test_a_group_that_turns_ready_is_progress(world):
    world.now = START + 200
    world.change("chat-d-1-0-0", routable=True)
    world.turn_ready()
    world.change("chat-p-2-0-0", started=False, containers_ready=False)
    world.wait(299)
    assert progressing(world)[1] == "RollingOut"
    world.wait(1)
    assert progressing(world)[1] == "ProgressDeadlineExceeded"


def test_an_attempt_after_a_failure_is_none(world):
    for seconds in (10, 100, 200):
        world.wait(START + seconds - world.now)
        world.fail(max(name for name in world.pods if "-p-2-" in name))
        world.round()
        world.wait(30)
        world.bury()
    world.wait(START + 300 - world.now)
    assert progressing(world)[1] == "ProgressDeadlineExceeded"


def test_a_drain_has_its_own_deadline(world):
    world.raw = raw_spec(
        image="engine:2",
        rollout={
            "drainSeconds": 60,
            "progressDeadlineSeconds": 30,
            "maxSurge": 0,
            "maxUnavailable": 1,
        },
    )
    world.change("chat-p-1-0-0", draining=True, drain_deadline=START + 60)
    assert world.plan().wake is not None
    world.now = START + 59
    assert progressing(world)[1] == "RollingOut"


def test_a_rollout_that_is_held_waits_for_nothing(world):
    world.raw = {**world.raw, "rollout": {**ROLLOUT, "paused": True}}
    world.now = START + 10_000
    assert progressing(world)[1] == "Paused"


def test_without_a_deadline_it_waits_for_ever(world):
    world.raw = {**world.raw, "rollout": {**ROLLOUT, "progressDeadlineSeconds": 0}}
    world.now = START + 1_000_000
    assert progressing(world)[1] == "RollingOut"


def test_what_stood_whole_has_no_deadline_any_more():
    world = World(raw_spec(rollout=ROLLOUT))
    world.settle()
    world.change("chat-d-0-0-0", ready=False, containers_ready=False)
    world.now += 10_000
    assert progressing(world)[1] == "Starting"


def test_a_revert_starts_the_clock_anew(world):
    world.now = START + 1000
    world.raw = raw_spec(rollout=ROLLOUT)
    world.change("chat-d-0-0-0", ready=False)
    world.settle()
    assert world.revisions[digest(world.raw)].since == START + 1000
    assert not world.plan().overdue
