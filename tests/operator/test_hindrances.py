"""What keeps pods from serving and does not end them: who reports it, when, with which cure."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from pds_operator import names
from pds_operator.decide.actions import Problem
from pds_operator.decide.severity import worst_first
from pds_operator.decide.status import status
from pds_operator.facts.observed import (
    LeaderState,
    Observed,
    Pod,
    RouterPod,
    ScopeFailure,
    WarmupPod,
    rfc3339,
)
from pds_operator.facts.reading import pod_facts, router_facts
from worlds import NOW, ROUTER, World, desired, raw_spec, settled

PULL = "ImagePullBackOff: Back-off pulling image engine:tpyo"


@pytest.fixture
def world() -> World:
    return settled(3600)


def degraded(world: World) -> tuple[str, str, str]:
    return condition(world, "Degraded")


def condition(world: World, kind: str) -> tuple[str, str, str]:
    wanted = desired(world.raw, world.rotate)
    said = status(world.observed(), wanted, world.plan(), {}, world.now)
    [found] = [item for item in said["conditions"] if item["type"] == kind]
    return found["status"], found["reason"], found["message"]


def begin(world: World, **spec: Any) -> list[str]:
    """A rollout to an image that no node can pull; the new pods."""
    before = set(world.pods)
    world.raw = raw_spec(image="engine:tpyo", **spec)
    for _ in range(4):
        world.round()
    return sorted(set(world.pods) - before)


def test_a_bad_image_in_mid_rollout_is_reported_within_a_minute(world):
    new = begin(world)
    for name in new:
        world.change(name, scheduled=True, node="n1", waits="ErrImagePull: no such tag")
    assert degraded(world)[:2] == ("False", "AsExpected")
    assert world.plan().wake is not None
    assert world.plan().wake <= world.now + 30
    world.now += 31
    assert degraded(world)[:2] == ("True", "ImagePullBackOff")
    for name in new:
        world.change(name, waits=PULL)
    state, reason, message = degraded(world)
    assert (state, reason) == ("True", "ImagePullBackOff")  # the kubelet reports both by turns
    assert f"pod {new[0]} (and {len(new) - 1} more pods) on node n1: {PULL}" in message
    assert "put the image right in the spec" in message
    assert condition(world, "Reconciling")[0] == "True"
    assert condition(world, "Ready")[0] == "True"


def test_it_is_over_with_the_image(world):
    new = begin(world)
    for name in new:
        world.change(name, scheduled=True, waits=PULL)
    world.now += 60
    assert degraded(world)[0] == "True"
    for name in new:
        world.change(name, waits="")
    assert degraded(world)[:2] == ("False", "AsExpected")


LASTING: dict[str, tuple[Callable[[World], None], str, str]] = {
    "image": (lambda w: at(w, waits=PULL), "ImagePullBackOff", "imagePullSecrets"),
    "secret": (
        lambda w: at(w, waits='CreateContainerConfigError: secret "hf" not found'),
        "CreateContainerConfigError",
        'secret "hf" not found; make the ConfigMap or Secret',
    ),
    "node": (
        lambda w: at(w, scheduled=False, unscheduled="0/3 nodes are available"),
        "Unschedulable",
        "0/3 nodes are available",
    ),
    "volume": (
        lambda w: at(w, node="n1", unprepared=w.now),
        "PodNotPrepared",
        "waits on node n1 for its volumes, its network or its image; kubectl describe pod",
    ),
    "router image": (
        lambda w: routers(w, waits=PULL),
        "ImagePullBackOff",
        "pod chat-router-1",
    ),
    "router crashes": (
        lambda w: routers(w, restarts=4, fell="exit code 78, no such template"),
        "RouterFailing",
        "restarted 4 times: exit code 78, no such template; kubectl logs chat-router-1",
    ),
    "router without a node": (
        lambda w: routers(w, unscheduled="0/3 nodes are available"),
        "Unschedulable",
        "pod chat-router-1: 0/3",
    ),
    "router quota": (lambda w: refuse_routers(w), "RouterPodsRefused", "exceeded quota: pods"),
    "quota": (
        lambda w: refused(w, "QuotaExceeded", "exceeded quota: pods"),
        "QuotaExceeded",
        "exceeded quota: pods",
    ),
    "service": (
        lambda w: refused(w, "Invalid", "Service chat is invalid"),
        "Invalid",
        "Service chat is invalid",
    ),
    "dead node": (
        lambda w: at(w, deleting=True, gone_by=w.now + 10, node="n1"),
        "PodStuck",
        "pod chat-d-0-0-0, on node n1, should have ended",
    ),
    "warm-up": (
        lambda w: setattr(w, "warmups", (WarmupPod("w-1", "r", waits=PULL, created=w.now),)),
        "ImagePullBackOff",
        "pod w-1: ImagePullBackOff",
    ),
    "clock": (lambda w: skew(w), "ClockSkew", "more than 650 s ahead"),
    "crash loop": (
        lambda w: at(w, started=False, ready=False, failures=2),
        "GroupFailing",
        "starts decode group 0 again, as attempt 0, after 2 failures in a row",
    ),
}


def at(world: World, **facts: Any) -> None:
    """A pod that has just been made."""
    fresh = {"started": False, "ready": False, "containers_ready": False, "created": world.now}
    world.change("chat-d-0-0-0", **(fresh | facts))


def routers(world: World, **facts: Any) -> None:
    bad = RouterPod("chat-router-1", "", False, created=world.now, **facts)
    world.router_pods = (ROUTER, bad)


def refuse_routers(world: World) -> None:
    live = world.objects["Deployment", "chat-router"]
    said = 'pods "chat-router-1" is forbidden: exceeded quota: pods'
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"}
    failure["lastTransitionTime"] = rfc3339(world.now)
    live["status"]["conditions"] = [failure | {"message": said}]


def refused(world: World, reason: str, message: str) -> None:
    world.failures = {"x": ScopeFailure(reason, message, 3, world.now + 900, world.now)}


def skew(world: World) -> None:
    observed = world.observed

    def skewed() -> Observed:
        seen = observed()
        states = dict.fromkeys(seen.states, LeaderState(clock=900.0))
        return dataclasses.replace(seen, states=states)

    world.observed = skewed  # type: ignore[method-assign]


@pytest.mark.parametrize(("hinder", "reason", "words"), LASTING.values(), ids=LASTING)
def test_what_lasts_is_reported_with_name_and_cure(world, hinder, reason, words):
    hinder(world)
    world.now += 59 if reason != "PodNotPrepared" else 301
    state, found, message = degraded(world)
    assert (state, found) == ("True", reason)
    assert words in message
    assert condition(world, "Stalled")[0] == ("True" if reason == "Invalid" else "False")


BRIEF = (
    "node",
    "router quota",
    "router crashes",
    "image",
    "volume",
    "quota",
    "router image",
    "router without a node",
    "dead node",
)


@pytest.mark.parametrize("name", BRIEF)
def test_a_hiccup_is_not_reported_and_looked_at_again(world, name):
    LASTING[name][0](world)
    world.now += 5
    assert degraded(world)[:2] == ("False", "AsExpected")
    wake = world.plan().wake
    assert wake is not None
    assert world.now < wake <= world.now + 300


def test_what_an_attempt_before_has_left_on_a_dead_node_is_reported(world):
    gone = world.pods["chat-d-0-0-0"]
    world.pods["chat-d-0-1-0"] = dataclasses.replace(
        gone, name="chat-d-0-1-0", uid="u-1", attempt=1
    )
    world.change("chat-d-0-0-0", deleting=True, ready=False, gone_by=world.now - 60, node="n1")
    state, reason, message = degraded(world)
    assert (state, reason) == ("True", "PodStuck")
    assert "pod chat-d-0-0-0, on node n1, should have ended" in message


def test_a_router_that_ends_is_nobodys_trouble(world):
    """In a rolling update it may take minutes; the record of an evicted one stays for hours."""
    old = RouterPod("chat-router-9", "", False, ends=True, restarts=5, fell="exit code 137")
    world.router_pods = (ROUTER, old)
    assert degraded(world)[:2] == ("False", "AsExpected")


def test_a_router_of_many_days_that_is_unready_for_a_moment_is_not_reported(world):
    facts = {"restarts": 4, "fell": "exit code 137", "created": world.now - 10**6}
    world.router_pods = (ROUTER, RouterPod("chat-router-9", "", False, unready=world.now, **facts))
    assert degraded(world)[:2] == ("False", "AsExpected")
    world.now += 30
    assert degraded(world)[:2] == ("True", "RouterFailing")


def test_a_sidecar_that_starts_again_is_no_trouble_of_a_pod_that_is_ready(world):
    crash = "CrashLoopBackOff: back-off 10s restarting failed container=shipper"
    world.change("chat-d-0-0-0", waits=crash)
    assert degraded(world)[:2] == ("False", "AsExpected")
    world.change("chat-d-0-0-0", containers_ready=False, ready=False, unready=world.now)
    assert degraded(world)[:2] == ("False", "AsExpected")
    world.now += 30
    assert degraded(world)[:2] == ("True", "CrashLoopBackOff")


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ('persistentvolumeclaim "models" not found', "make the claim"),
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu", "make room"),
        ("0/3 nodes are available: 3 node(s) had untolerated taint {gpu: true}", "tolerations"),
        (
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector",
            "Selector",
        ),
        ("a scheduling gate", "kubectl describe pod chat-d-0-0-0"),
    ],
)
def test_the_cure_for_a_pod_without_a_node_is_what_the_scheduler_lacks(world, said, cure):
    at(world, scheduled=False, unscheduled=said)
    world.now += 40
    assert cure in degraded(world)[2].partition(said)[2]


def test_a_dead_sidecar_of_the_users_is_reported(world):
    world.change(
        "chat-d-0-0-0",
        ready=False,
        containers_ready=False,
        fallen="container proxy has ended with exit code 1",
    )
    state, reason, message = degraded(world)
    assert (state, reason) == ("True", "SidecarEnded")
    assert "container proxy has ended with exit code 1" in message
    assert "kubectl delete pod chat-d-0-0-0" in message


CRASHES = "container proxy ends again and again: exit code 3"


def test_a_sidecar_that_crashes_again_and_again_is_reported_while_it_runs_too(world):
    world.change("chat-d-0-0-0", crashes=CRASHES, runs_since=world.now - 5)
    state, reason, message = degraded(world)
    assert (state, reason) == ("True", "CrashLoopBackOff")
    assert CRASHES in message
    assert "kubectl logs chat-d-0-0-0 --all-containers --previous" in message
    world.now += 60
    assert degraded(world)[:2] == ("False", "AsExpected")


def test_old_groups_stay_while_sidecars_of_the_new_ones_crash(world):
    new = begin(world)
    world.turn_ready()
    world.round()
    world.turn_ready()
    for name in new:
        world.change(name, crashes=CRASHES)
    left = [each for each in world.round() if each.startswith("drain")]
    assert left == []
    for name in new:
        world.change(name, crashes="", runs_since=None)
    assert [each for each in world.round() if each.startswith("drain")]


def test_the_worst_is_reported_first():
    """What stands for ever before what may pass, and that before what does no harm."""
    found = [
        Problem(reason, reason)
        for reason in ("CacheVolumeUnusable", "Unschedulable", "NewKind", "Invalid", "Invalid")
    ]
    assert [item.reason for item in worst_first(found)] == [
        "Invalid",
        "NewKind",
        "Unschedulable",
        "CacheVolumeUnusable",
    ]


def test_kstatus_of_a_rollout_that_failed_its_deadline(world):
    # Nobody goes back by itself here: it goes on trying, and says that a person should look.
    new = begin(world, rollout={"progressDeadlineSeconds": 120, "autoRollback": False})
    for name in new:
        world.change(name, scheduled=True, waits=PULL)
    world.wait(400)
    assert condition(world, "Stalled")[:2] == ("True", "RevisionFailing")
    assert condition(world, "Reconciling")[0] == "False"
    assert condition(world, "Degraded")[:2] == ("True", "RevisionFailing")
    assert condition(world, "Ready")[0] == "True"


def test_kstatus_of_a_paused_rollout_is_under_way(world):
    world.raw = raw_spec(image="engine:2", rollout={"paused": True})
    world.round()
    world.round()
    assert condition(world, "Progressing")[1] == "Paused"
    assert condition(world, "Reconciling")[:2] == ("True", "Paused")


def engine(status: dict[str, Any], created: float = NOW) -> Pod:
    meta = {"name": "chat-d-0-0-0", "uid": "u", "creationTimestamp": rfc3339(created)}
    meta |= {"labels": {names.NAME: "chat", names.ROLE: "decode"}}
    found = pod_facts({"metadata": meta, "spec": {"nodeName": "n1"}, "status": status})
    assert found is not None
    return found


def test_what_a_kubelet_says_of_volumes_and_network():
    has_node = {"type": "PodScheduled", "status": "True", "lastTransitionTime": rfc3339(NOW)}
    bare = {"type": "PodReadyToStartContainers", "status": "False"}
    assert engine({"conditions": [has_node, bare]}).unprepared == NOW
    assert engine({"conditions": [has_node]}).unprepared is None  # a kubelet that does not say
    assert engine({"conditions": [has_node, bare | {"status": "True"}]}).unprepared is None
    assert engine({"conditions": [bare]}).unprepared is None


def test_a_container_that_ended_beside_a_living_engine():
    runs = {"name": "engine", "started": True, "state": {"running": {}}}
    over = {"name": "proxy", "state": {"terminated": {"exitCode": 0}}}
    text = "container proxy has ended with exit code 0"
    assert engine({"phase": "Running", "containerStatuses": [runs, over]}).fallen == text
    dead = {"name": "engine", "state": {"terminated": {"exitCode": 1}}}
    assert engine({"phase": "Running", "containerStatuses": [dead, over]}).fallen == ""


def test_how_a_router_ended_last():
    meta = {"name": "chat-router-1", "creationTimestamp": rfc3339(NOW)}
    ended = {"exitCode": 78, "reason": "Error", "message": '{"error": "no port", "hint": "give"}'}
    container = {
        "name": "router",
        "restartCount": 3,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
        "lastState": {"terminated": ended},
    }
    found = router_facts({"metadata": meta, "status": {"containerStatuses": [container]}})
    assert (found.restarts, found.fell) == (3, "exit code 78, no port (give)")
    assert found.created == NOW
