"""Whole lives of a PDServing, round by round."""

import dataclasses

import pytest
from pds_operator import names
from pds_operator.decide.actions import Delete, Problem
from pds_operator.decide.plan import plan
from pds_operator.facts.observed import ScopeFailure
from worlds import NOW, OWNER, World, desired, digest, pod_names, problems, raw_spec

REVISION = digest(raw_spec())


def test_first_start():
    world = World(raw_spec())
    assert world.settle() == [
        [f"controllerrevision chat-{REVISION}"],
        ["chat-p-0-0-0", "chat-d-0-0-0", "chat-p-1-0-0"],
        ["route chat-p-0-0-0", "route chat-p-1-0-0", "route chat-d-0-0-0"],
    ]


def test_the_first_round_makes_the_secrets_before_what_mounts_them():
    actions = World(raw_spec()).plan().actions
    assert [str(action) for action in actions] == [
        "make the first control key",
        "write the ring of 1 keys",
        "make the key of the compile cache",
        "create service chat-ranks",
        "create poddisruptionbudget chat-prefill",
        "create poddisruptionbudget chat-decode",
        "create networkpolicy chat-engine",
        "create networkpolicy chat-router",
        "create serviceaccount chat-router",
        "create rolebinding chat-router",
        "create configmap chat-router",
        "create service chat",
        "create deployment chat-router",
        "try out pod chat-p-9999-0-0",
        "try out pod chat-d-9999-0-0",
        f"create controllerrevision chat-{REVISION}",
        "say RevisionCreated",
    ]


def test_a_settled_world_is_left_alone(world):
    assert world.plan().actions == ()


def test_a_crash_between_any_two_writes_is_made_good():
    whole = World(raw_spec())
    whole.settle()
    for cut in range(18):
        world = World(raw_spec())
        for _ in range(4):
            for action in world.plan().actions[:cut]:
                world._do(action)
            world.turn_ready()
        world.settle()
        assert pod_names(world) == pod_names(whole)
        assert set(world.objects) == set(whole.objects)


def test_scale_up(world):
    world.raw = raw_spec(prefill={"replicas": 3})
    assert world.settle() == [["chat-p-2-0-0"], ["route chat-p-2-0-0"]]


def test_scale_down_drains_and_waits_for_the_last_request(world):
    world.raw = raw_spec(prefill={"replicas": 1})
    world.busy["chat-p-1-0-0"] = 1
    assert world.round() == ["drain chat-p-1-0-0"]
    assert world.asked == {"chat-p-1-0-0"}
    # It is labelled, so no router chooses it, and its gate follows.
    assert world.round() == ["unroute chat-p-1-0-0"]
    assert world.round() == []
    world.busy.clear()
    assert world.round() == ["delete pod chat-p-1-0-0"]
    world.bury()
    assert pod_names(world) == ["chat-d-0-0-0", "chat-p-0-0-0"]
    assert world.plan().actions == ()


def test_a_drain_that_runs_out_of_time_ends_all_the_same(world):
    world.raw = raw_spec(decode={"replicas": 0})
    world.busy["chat-d-0-0-0"] = 1
    world.settle_rounds = [world.round(), world.round()]
    assert world.round() == []
    assert world.plan().wake == pytest.approx(NOW + 1)
    world.now += 61
    [delete] = [item for item in world.plan().actions if isinstance(item, Delete)]
    assert (delete.name, delete.grace) == ("chat-d-0-0-0", 30)


def test_an_engine_that_does_not_answer_is_drained_by_the_deadline_alone(world):
    world.raw = raw_spec(prefill={"replicas": 1})
    world.round()
    observed = dataclasses.replace(world.observed(), states={})
    before = [str(item) for item in plan(observed, desired(world.raw), NOW + 59).actions]
    assert before == ["ask chat-p-1-0-0 to drain", "unroute chat-p-1-0-0"]
    after = [str(item) for item in plan(observed, desired(world.raw), NOW + 60).actions]
    assert after[0] == "delete pod chat-p-1-0-0"


def test_a_changed_template_replaces_groups_step_by_step(world):
    world.raw = raw_spec(image="engine:2")
    new = digest(world.raw)
    assert world.settle() == [
        [f"controllerrevision chat-{new}"],
        ["chat-p-2-0-0", "chat-d-1-0-0"],
        ["route chat-p-2-0-0", "route chat-d-1-0-0"],
        ["drain chat-p-1-0-0"],  # step 1 of 2: the old decode stays for the old prefill
        ["delete pod chat-p-1-0-0", "unroute chat-p-1-0-0"],
        ["chat-p-1-0-0"],
        ["route chat-p-1-0-0"],
        ["drain chat-p-0-0-0", "drain chat-d-0-0-0"],
        [
            "delete pod chat-p-0-0-0",
            "unroute chat-p-0-0-0",
            "delete pod chat-d-0-0-0",
            "unroute chat-d-0-0-0",
        ],
    ]
    assert pod_names(world) == ["chat-d-1-0-0", "chat-p-1-0-0", "chat-p-2-0-0"]
    assert {pod.revision for pod in world.pods.values()} == {new}


def test_a_revert_in_mid_rollout_goes_back_by_the_same_rules(world):
    world.raw = raw_spec(image="engine:2")
    for _ in range(3):
        world.round()
        world.turn_ready()
    world.raw = raw_spec()
    assert world.settle() == [
        ["drain chat-p-2-0-0", "drain chat-d-1-0-0"],
        [
            "delete pod chat-p-2-0-0",
            "unroute chat-p-2-0-0",
            "delete pod chat-d-1-0-0",
            "unroute chat-d-1-0-0",
        ],
    ]
    assert {pod.revision for pod in world.pods.values()} == {REVISION}


def test_a_revision_that_never_starts_leaves_the_old_one_serving(world):
    world.raw = raw_spec(image="engine:2")
    world.round()
    world.round()
    for _ in range(5):
        for name in [name for name, pod in world.pods.items() if pod.revision != REVISION]:
            if not world.pods[name].failed:
                world.fail(name)
        world.now += 400
        world.round()
        world.bury()
    assert sum(pod.ready and pod.revision == REVISION for pod in world.pods.values()) == 3


def test_a_new_spec_replaces_groups_that_never_served_at_once():
    world = World(raw_spec(image="no-such-image"))
    for _ in range(3):
        world.round()
    world.raw = raw_spec()
    rounds = [world.round(), world.round(), world.round()]
    assert rounds == [
        [f"controllerrevision chat-{REVISION}"],
        [
            "drain chat-p-0-0-0",
            "drain chat-p-1-0-0",
            "drain chat-d-0-0-0",
            "chat-p-2-0-0",
            "chat-d-1-0-0",
            "chat-p-3-0-0",
        ],
        ["delete pod chat-p-0-0-0", "delete pod chat-p-1-0-0", "delete pod chat-d-0-0-0"],
    ]


def test_a_group_that_may_serve_unheard_is_asked_to_drain():
    """Routers take a leader as soon as it is ready, and may know it before we do.

    The answer to its mark shows it: a watch may be silent for a minute.
    """
    world = World(raw_spec())
    world.settle()
    world.raw = raw_spec(image="engine:2")
    for _ in range(2):
        world.round()
    world.raw = raw_spec()
    plan = world.plan()
    assert plan.unsettled
    assert plan.wake == world.now
    marked = world.round()
    assert marked == ["drain chat-p-2-0-0", "drain chat-d-1-0-0"]
    world.change("chat-d-1-0-0", phase="Running")
    deletes = {a.name: a.grace for a in world.plan().actions if isinstance(a, Delete)}
    assert deletes == {"chat-p-2-0-0": 5, "chat-d-1-0-0": None}


def test_a_foreign_object_of_our_name_is_left_alone(world):
    service = world.objects["Service", "chat"]
    service["metadata"]["ownerReferences"][0] |= {"kind": "Other", "uid": "somebody-else"}
    assert world.plan().actions == ()
    assert problems(world) == ["NameTaken"]
    service["metadata"]["ownerReferences"] = []
    service["metadata"]["labels"] = {names.NAME: "chat"}
    assert problems(world) == ["NameTaken"]


def test_a_predecessors_object_is_waited_for(world):
    service = world.objects["Service", "chat"]
    service["metadata"]["ownerReferences"][0]["uid"] = "uid-before"
    assert world.plan().actions == ()
    assert problems(world) == ["PredecessorLeaving"]
    del world.objects["Service", "chat"]
    assert [str(action) for action in world.plan().actions] == ["create service chat"]


def test_what_was_refused_is_held_back_and_reported(world):
    world.raw = raw_spec(prefill={"replicas": 3})
    world.failures = {
        "group/prefill/2": ScopeFailure("QuotaExceeded", "exceeded quota: gpus", 1, NOW + 5)
    }
    decided = world.plan()
    assert [str(action) for action in decided.actions] == ["apply poddisruptionbudget chat-prefill"]
    assert decided.problems == (Problem("QuotaExceeded", "exceeded quota: gpus"),)
    assert decided.wake == NOW + 5


def test_what_was_refused_and_is_not_asked_for_any_more_is_not_reported(world):
    world.failures = {
        "PodDisruptionBudget/chat-prefill": ScopeFailure(
            "ApiUnreachable", "TimeoutError", 1, NOW - 1
        )
    }
    assert world.plan().problems == ()


def test_drift_is_put_right(world):
    world.objects["Service", "chat-ranks"]["spec"]["publishNotReadyAddresses"] = False
    assert [str(action) for action in world.plan().actions] == ["apply service chat-ranks"]


def test_engines_wait_for_the_routers_to_roll(world):
    world.raw = raw_spec(image="engine:2")
    world.round()
    world.objects["Deployment", "chat-router"]["status"]["updatedReplicas"] = 0
    assert world.round() == []
    world.objects["Deployment", "chat-router"]["status"]["updatedReplicas"] = 1
    assert world.round() == ["chat-p-2-0-0", "chat-d-1-0-0"]


def test_history_keeps_its_limit_and_what_is_in_use():
    world = World(raw_spec(rollout={"drainSeconds": 60, "revisionHistoryLimit": 1}))
    for tag in ("1", "2", "3", "4"):
        world.raw = {**world.raw, "image": f"engine:{tag}"}
        world.settle()
    kept = sorted(item.data["spec"]["image"] for item in world.revisions.values())
    assert kept == ["engine:3", "engine:4"]
    configs = {name for kind, name in world.objects if kind == "ConfigMap"}
    assert configs == {f"{OWNER.name}-{item}" for item in world.revisions} | {"chat-router"}


def test_a_refused_template_is_reported_and_what_runs_goes_on(world):
    world.raw = raw_spec(decode={"replicas": 1, "podTemplate": {"spec": {"hostname": "mine"}}})
    assert problems(world) == ["InvalidSpec"]
    assert world.plan().actions == ()


def test_from_unified_to_pairs_serves_throughout():
    world = World(raw_spec(prefill=None, decode=None, unified={"replicas": 1}))
    world.settle()
    world.raw = raw_spec()
    rounds = world.settle()
    flat = [text for texts in rounds for text in texts]
    assert flat.index("route chat-d-0-0-0") < flat.index("drain chat-u-0-0-0")
    assert pod_names(world) == ["chat-d-0-0-0", "chat-p-0-0-0", "chat-p-1-0-0"]


@pytest.mark.parametrize("fault", ["routable", "containers_ready"])
def test_a_group_that_runs_and_whose_gate_is_open_may_be_ready_unheard(fault):
    world = World(raw_spec(decode={"replicas": 3}))
    world.settle()
    world.change("chat-d-0-0-0", ready=False, **{fault: False})
    world.change("chat-d-2-0-0", ready=False)
    world.raw = raw_spec(decode={"replicas": 2})
    assert "drain chat-d-0-0-0" in world.round()


def test_the_revision_that_serves_is_recovered_before_anything_is_brought_out():
    """Somebody took its labels, and so we do not see what there is to hold on to."""
    world = World(raw_spec())
    world.settle()
    del world.revisions[REVISION]
    world.raw = raw_spec(image="engine:2", rollout={"paused": True})
    world.round()
    assert REVISION in world.revisions
    assert not any("chat-" in action for texts in world.settle() for action in texts)


def test_a_revision_that_is_gone_holds_up_nothing():
    world = World(raw_spec())
    world.settle()
    del world.revisions[REVISION]
    del world.objects["ControllerRevision", f"chat-{REVISION}"]
    world.raw = raw_spec(image="engine:2")
    world.round()
    world.round()
    assert problems(world) == ["RevisionMissing"]
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {digest(world.raw)}
