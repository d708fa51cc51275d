"""Which revision is rolled out, and what holds it back, round by round."""

import pytest
from pds_operator.decide.plan import plan
from pds_operator.facts.observed import ScopeFailure
from worlds import NOW, World, desired, digest, raw_spec, settled

REVISION = digest(raw_spec())


@pytest.fixture
def world() -> World:
    """Settled for a minute."""
    return settled(60)


def test_a_paused_rollout_makes_nothing_new_and_keeps_up_what_serves(world):
    world.raw = raw_spec(image="engine:2", rollout={"drainSeconds": 60, "paused": True})
    assert world.settle() == [[f"controllerrevision chat-{digest(world.raw)}"]]
    world.raw = {**world.raw, "prefill": {"replicas": 3}}
    assert world.settle() == [["chat-p-2-0-0"], ["route chat-p-2-0-0"]]
    assert world.pods["chat-p-2-0-0"].revision == REVISION
    world.fail("chat-d-0-0-0")
    assert "chat-d-0-1-0" in world.settle()[0]
    world.raw = {**world.raw, "prefill": {"replicas": 1}}
    assert [actions for actions in world.settle() if "drain" in actions[0]] == [
        ["drain chat-p-2-0-0", "drain chat-p-1-0-0"]
    ]
    assert {pod.revision for pod in world.pods.values()} == {REVISION}
    world.raw = {**world.raw, "rollout": {"drainSeconds": 60}}
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {digest(world.raw)}


def test_an_old_group_that_cannot_start_is_kept_while_the_rollout_is_held(world):
    world.raw = raw_spec(image="engine:2", rollout={"drainSeconds": 60, "paused": True})
    world.settle()
    for _ in range(3):
        newest = max(name for name in world.pods if "-d-0-" in name)
        world.fail(newest)
        world.now += 400
        actions = world.round()
        world.bury()
    assert actions == ["delete pod chat-d-0-1-0", "chat-d-0-3-0"]  # the next attempt, no new group


def test_a_partition_stays_until_it_is_lowered(world):
    world.raw = raw_spec(image="engine:2", rollout={"drainSeconds": 60, "partition": 1})
    world.settle()
    new = digest(world.raw)
    by_role = sorted((pod.role, pod.revision == new) for pod in world.pods.values())
    assert by_role == [  # the old prefill keeps an old decode: they may be all it can pair with
        ("decode", False),
        ("decode", True),
        ("prefill", False),
        ("prefill", True),
    ]
    assert world.revisions[new].served is None
    world.raw = raw_spec(image="engine:2")
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {new}
    assert world.revisions[new].served == world.now


def test_a_first_start_has_nothing_to_hold_on_to():
    world = World(raw_spec(rollout={"drainSeconds": 60, "paused": True, "partition": "100%"}))
    world.settle()
    assert len(world.pods) == 3


def test_a_partition_says_nothing_of_what_is_rolled_out(world):
    world.raw = raw_spec(image="engine:2")
    world.settle()
    world.raw = raw_spec(
        image="engine:2", prefill={"replicas": 4}, rollout={"drainSeconds": 60, "partition": "50%"}
    )
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {digest(world.raw)}
    assert len(world.pods) == 5


def test_a_revert_is_the_newest_target_again(world):
    first = digest(world.raw)
    world.raw = raw_spec(image="engine:2")
    world.settle()
    second = digest(world.raw)
    world.now += 60
    world.raw = raw_spec()
    assert "note targeted, waited, gave-way on chat-" + first in [
        str(item) for item in world.plan().actions
    ]
    world.settle()
    times = {name: (item.since, item.served) for name, item in world.revisions.items()}
    assert times == {
        first: (NOW + 120, NOW + 120),
        second: (NOW + 60, NOW + 60),
    }


def test_a_group_counts_when_it_has_been_ready_for_long_enough(world):
    world.raw = raw_spec(image="engine:2", rollout={"drainSeconds": 60, "minReadySeconds": 30})
    for _ in range(3):
        world.round()
        world.turn_ready()
    world.turn_ready()
    assert world.round() == []
    assert world.plan().wake == NOW + 90
    world.now += 30
    assert world.round() == ["drain chat-p-1-0-0"]


def test_an_upgrade_of_the_operator_restarts_no_pod(world):
    """New defaults for images, volumes and variables enter with the next revision."""
    wanted = desired(
        world.raw,
        image={"repository": "example/engine", "tag": "next"},
        pod_defaults={"env": [{"name": "NEW", "value": "1"}], "commandPrefix": "/opt"},
    )
    actions = [str(item) for item in plan(world.observed(), wanted, world.now).actions]
    assert actions == ["apply deployment chat-router"]
    world.fail("chat-d-0-0-0")
    [made] = [
        item.obj
        for item in plan(world.observed(), wanted, world.now).actions
        if str(item) == "create pod chat-d-0-1-0"
    ]
    [container] = made["spec"]["containers"]
    assert container["command"][0] == "pds-engine"  # as it was stored
    assert "NEW" not in [item["name"] for item in container["env"]]


def test_the_revision_that_serves_outlives_the_history_limit():
    world = World(raw_spec(rollout={"drainSeconds": 60, "revisionHistoryLimit": 0}))
    world.settle()
    first = digest(world.raw)
    world.now += 60
    world.raw = {**world.raw, "image": "engine:2"}
    for _ in range(3):
        world.round()
    for name in [name for name, pod in world.pods.items() if pod.revision == first]:
        del world.pods[name]  # all its nodes are lost at once, in the middle
    world.round()
    assert first in world.revisions
    world.settle()
    assert set(world.revisions) == {digest(world.raw)}


def test_a_failed_revision_stays_while_the_spec_asks_for_it():
    world = World(raw_spec(rollout={"drainSeconds": 60, "revisionHistoryLimit": 0}))
    world.settle()
    world.now += 60
    bad = world.raw = {**world.raw, "image": "engine:2"}
    for _ in range(3):
        world.round()
    world.fail("chat-d-1-0-0", exit_code=78)
    world.settle()
    assert set(world.revisions) == {REVISION, digest(bad)}
    world.now += 60
    world.raw = {**world.raw, "image": "engine:3"}
    world.settle()
    assert set(world.revisions) == {digest(world.raw)}


def test_a_group_that_was_lost_while_nobody_looked_is_made_before_a_new_one(world):
    """Its node is gone, its pod with it, and the spec was changed meanwhile."""
    assert world.revisions[REVISION].groups == {"prefill": 2, "decode": 1}
    del world.pods["chat-p-1-0-0"]
    world.now += 3600
    world.raw = raw_spec(image="engine:2")
    world.round()
    made = [name for name in world.round() if name.startswith("chat-")]
    assert made == ["chat-p-1-0-0", "chat-d-1-0-0"]
    assert world.pods["chat-p-1-0-0"].revision == REVISION
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {digest(world.raw)}
    assert len(world.pods) == 3


def ours_env() -> dict:
    """A podTemplate that touches what is the operator's."""
    engine = {"name": "engine", "env": [{"name": "PDS_X", "value": "1"}]}
    return {"replicas": 1, "podTemplate": {"spec": {"containers": [engine]}}}


@pytest.mark.parametrize("how", ["by the operator", "by the API server"])
def test_an_edit_that_is_refused_stops_nothing(world, how):
    """What is lost is made again, scaling goes on, of the revision that there was."""
    if how == "by the operator":
        world.raw = raw_spec(decode=ours_env())
    else:
        world.raw = raw_spec(image="engine:2")
        failure = ScopeFailure("Invalid", "spec.priority: Forbidden", 3, world.now + 10**6)
        world.failures = {f"revision/{digest(world.raw)}": failure}
    world.round()
    del world.pods["chat-d-0-0-0"]
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {REVISION}
    assert [name for name in world.pods if "-d-" in name]
    world.raw = {**world.raw, "prefill": {"replicas": 3}}
    if how == "by the API server":
        world.failures = {f"revision/{digest(world.raw)}": next(iter(world.failures.values()))}
    world.settle()
    assert len([name for name in world.pods if "-p-" in name]) == 3
    assert {problem.reason for problem in world.plan().problems} & {"InvalidSpec", "Invalid"}


def test_an_edit_that_is_refused_in_mid_rollout_lets_it_go_on(world):
    world.raw = raw_spec(image="engine:2")
    middle = digest(world.raw)
    for _ in range(3):
        world.round()
    assert middle in {pod.revision for pod in world.pods.values()}
    world.raw = raw_spec(image="engine:2", decode=ours_env())
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {middle}


def test_a_refused_first_spec_makes_no_group():
    empty = World(raw_spec(decode=ours_env()))
    empty.settle()
    assert not empty.pods
