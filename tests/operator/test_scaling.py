"""Roles whose `replicas` are left out: their PDServingRole rules."""

import pytest
from pds_operator import names
from pds_operator.decide.actions import ReportScale
from pds_operator.decide.plan import plan
from worlds import NOW, OWNER, World, desired, raw_spec

SELECTOR = (
    "pdserving.io/name=chat,pdserving.io/role=decode,pdserving.io/rank-pod=0,!pdserving.io/draining"
)


@pytest.fixture
def world() -> World:
    """2 prefill groups by the spec, decode as its child says."""
    world = World(raw_spec(decode={}))
    world.settle()
    return world


def child(world: World, role: str = "decode") -> dict:
    return world.objects[names.ROLE_KIND, f"chat-{role}"]


def groups(world: World, role: str) -> list[str]:
    return sorted(pod.name for pod in world.pods.values() if pod.role == role)


def test_the_child_is_made_with_one_group_and_reports_what_there_is(world: World) -> None:
    assert child(world)["spec"] == {"replicas": 1}
    assert child(world)["status"] == {"replicas": 1, "readyReplicas": 1, "selector": SELECTOR}
    assert child(world)["metadata"]["ownerReferences"] == [OWNER.reference()]
    assert (names.ROLE_KIND, "chat-prefill") not in world.objects
    assert groups(world, "decode") == ["chat-d-0-0-0"]


def test_scaling_the_child_scales_its_role(world: World) -> None:
    child(world)["spec"]["replicas"] = 3
    assert world.settle() == [
        ["chat-d-1-0-0", "chat-d-2-0-0"],
        ["route chat-d-1-0-0", "route chat-d-2-0-0"],
    ]
    assert child(world)["status"]["readyReplicas"] == 3
    child(world)["spec"]["replicas"] = 1
    world.settle()
    assert groups(world, "decode") == ["chat-d-0-0-0"]
    assert child(world)["status"] == {"replicas": 1, "readyReplicas": 1, "selector": SELECTOR}


def test_the_disruption_budget_follows_the_child(world: World) -> None:
    child(world)["spec"]["replicas"] = 4
    world.settle()
    assert world.objects["PodDisruptionBudget", "chat-decode"]["spec"]["minAvailable"] == 3


def test_zero_is_a_count(world: World) -> None:
    child(world)["spec"]["replicas"] = 0
    world.settle()
    assert groups(world, "decode") == []


def test_taking_replicas_out_of_the_spec_scales_nothing() -> None:
    world = World(raw_spec())
    world.settle()
    before = set(world.pods)
    world.raw = raw_spec(prefill={})
    world.settle()
    assert set(world.pods) == before
    assert child(world, "prefill")["spec"] == {"replicas": 2}


def test_where_the_spec_says_replicas_the_child_goes(world: World) -> None:
    child(world)["spec"]["replicas"] = 3
    world.settle()
    world.raw = raw_spec(decode={"replicas": 2})
    world.settle()
    assert (names.ROLE_KIND, "chat-decode") not in world.objects
    assert groups(world, "decode") == ["chat-d-0-0-0", "chat-d-1-0-0"]


def test_an_object_of_somebody_else_rules_nothing(world: World) -> None:
    live = child(world)
    live["metadata"]["ownerReferences"][0] |= {"name": "another", "uid": "another"}
    live["spec"]["replicas"] = 9
    decided = plan(world.observed(), desired(world.raw), NOW)
    assert decided.roles["decode"].want == 1
    assert [problem.reason for problem in decided.problems] == ["NameTaken"]
    assert not any(isinstance(action, ReportScale) for action in decided.actions)
