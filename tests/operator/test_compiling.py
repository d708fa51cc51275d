"""Compile first: the Job of a new revision, round by round."""

import dataclasses

import pytest
from pds_operator.decide.status import status
from pds_operator.facts.observed import WarmupPod
from pds_operator.facts.reading import warmup_facts
from pds_operator.render import engine, warmup
from pds_operator.settings import Settings
from worlds import NOW, OWNER, World, desired, digest, raw_spec

SHARED = {"compileCache": {"volume": {"existingClaim": "c"}}}
OLD = raw_spec(**SHARED)
NEW = raw_spec(**SHARED, image="engine:2")
JOB = f"chat-{digest(NEW)}-warmup"
START = NOW + 60


@pytest.fixture
def world() -> World:
    """Settled; the spec has a new image, and its revision is stored."""
    world = World(OLD)
    world.settle()
    world.now = START
    world.compiles = True
    world.raw = NEW
    assert world.round() == [f"controllerrevision chat-{digest(NEW)}"]
    return world


def progressing(world: World) -> tuple[str, str]:
    written = status(world.observed(), desired(world.raw), world.plan(), {}, world.now)
    [found] = [item for item in written["conditions"] if item["type"] == "Progressing"]
    return found["reason"], found["message"]


def pod(**facts) -> tuple[WarmupPod]:
    return (WarmupPod(f"{JOB}-x", digest(NEW), owner=f"uid-Job-{JOB}", **facts),)


def test_the_job_comes_before_the_first_pod(world):
    assert world.round() == [f"job {JOB}"]
    world.warmups = pod(scheduled=True)
    world.now += 4000
    assert world.round() == []
    assert progressing(world)[0] == "WarmupRunning"  # the warm-up's own time-out holds
    world.end_job()
    assert world.round() == ["chat-p-2-0-0", "chat-d-1-0-0"]
    assert progressing(world)[0] == "RollingOut"
    rounds = world.settle()
    assert rounds[-1] == [f"delete job {JOB}"]
    assert {item.revision for item in world.pods.values()} == {digest(NEW)}


def test_what_serves_is_scaled_meanwhile_by_the_same_rules(world):
    world.round()
    world.raw = {**NEW, "prefill": {"replicas": 1}}
    assert world.settle()[0] == ["drain chat-p-1-0-0"]
    assert progressing(world)[0] == "WarmupRunning"


def test_a_job_that_finds_no_node_makes_room_for_the_surge_pods(world):
    world.round()
    world.warmups = pod(unscheduled="0/3 nodes are available")
    world.now = START + 119
    assert world.round() == []
    assert world.plan().wake == START + 120
    world.now = START + 120
    assert progressing(world) == (
        "WarmupInInit",
        f"the Job {JOB} found no room: no node takes its pod: 0/3 nodes are available; "
        f"prefill 2 ready of 2, 0 of revision {digest(NEW)}; "
        f"decode 1 ready of 1, 0 of revision {digest(NEW)}",
    )
    assert world.round() == [f"delete job {JOB}", "chat-p-2-0-0", "chat-d-1-0-0"]
    assert progressing(world)[0] == "WarmupInInit"
    world.settle()
    assert {item.revision for item in world.pods.values()} == {digest(NEW)}


def test_a_crash_after_the_first_pod_leaves_no_job_behind(world):
    world.round()
    world.now = START + 120
    actions = [item for item in world.plan().actions if str(item) != f"delete job {JOB}"]
    for action in actions:
        world._do(action)
    assert f"delete job {JOB}" in world.round()


def test_a_job_that_cannot_start_is_late_like_any_pod(world):
    """Its image cannot be pulled: no time-out of the warm-up's runs."""
    world.round()
    world.warmups = pod(scheduled=True, waits="ErrImagePull: no such tag")
    world.wait(1799)
    assert world.round() == []
    text = f"the Job {JOB} cannot start: {JOB}-x: ErrImagePull: no such tag"
    assert progressing(world)[1].startswith(text)
    world.wait(1)
    world.settle()
    assert world.revisions[digest(NEW)].failed == (
        f"ProgressDeadlineExceeded: no group of it could be made yet; "
        f"{JOB}-x: ErrImagePull: no such tag"
    )


def test_a_job_that_failed_gives_the_revision_up(world):
    world.round()
    world.warmups = pod(scheduled=True, error="graph decode: g++ failed")
    world.end_job("Failed")
    assert world.settle() == [[f"delete job {JOB}"]]
    stored = world.revisions[digest(NEW)]
    assert stored.failed == f"WarmupFailed: {JOB}-x: graph decode: g++ failed"
    assert {item.revision for item in world.pods.values()} == {digest(OLD)}


def test_a_job_that_failed_is_left_to_people_where_they_say_so(world):
    world.round()
    world.raw = {**NEW, "rollout": {"drainSeconds": 60, "autoRollback": False}}
    world.end_job("Failed")
    assert world.settle() == []
    [problem] = world.plan().problems
    assert problem.reason == "RevisionFailing"
    assert f"WarmupFailed: Job {JOB}: BackoffLimitExceeded" in problem.message


@pytest.mark.parametrize("rollout", [{"paused": True}, {"progressDeadlineSeconds": 0}])
def test_a_job_that_failed_where_nobody_gives_up_is_reported(world, rollout):
    """Before anything stood whole, or paused: no pod will be made until somebody edits the spec."""
    world.round()
    for own, stored in world.revisions.items():
        world.revisions[own] = dataclasses.replace(stored, served=None)
    world.raw = {**NEW, "rollout": {"drainSeconds": 60, **rollout}}
    world.end_job("Failed")
    world.round()
    reasons = {problem.reason: problem.message for problem in world.plan().problems}
    assert f"Job {JOB}: BackoffLimitExceeded" in reasons["WarmupFailed"]


def test_an_edit_in_between_clears_the_job_away(world):
    world.round()
    world.raw = OLD
    assert world.settle() == [[f"delete job {JOB}"]]


def test_a_paused_rollout_compiles_nothing(world):
    world.raw = {**NEW, "rollout": {"drainSeconds": 60, "paused": True}}
    assert world.round() == []


@pytest.mark.parametrize(
    "cache",
    [
        None,
        {},
        {"volume": {"ephemeral": {}}},
        {**SHARED["compileCache"], "warmup": {"enabled": False}},
    ],
    ids=["no cache", "no volume", "ephemeral", "no warm-up"],
)
def test_nothing_is_compiled_first_where_nothing_would_be_shared(cache):
    world = World(raw_spec(compileCache=cache))
    world.settle()
    world.raw = raw_spec(compileCache=cache, image="engine:2")
    assert not any("job" in text for texts in world.settle() for text in texts)


def test_a_first_start_compiles_in_its_own_pods():
    assert World(OLD).settle()[1] == ["chat-p-0-0-0", "chat-d-0-0-0", "chat-p-1-0-0"]


def test_the_job_warms_up_what_each_pod_of_a_group_runs():
    raw = raw_spec(
        **SHARED, prefill={"parallelism": {"pp": 2}, "resources": {"limits": {"cpu": 2}}}
    )
    data = engine.render(raw, desired(raw).spec, OWNER, Settings())
    [job] = warmup.jobs(OWNER, "abc", data)
    pod_spec = job["spec"]["template"]["spec"]
    steps = [*pod_spec["initContainers"], *pod_spec["containers"]]
    assert [step["name"] for step in steps] == ["prefill-0", "prefill-1", "decode-0"]
    assert [step["env"][1] for step in steps] == [
        {"name": "PDS_RANK_POD", "value": index} for index in ("0", "1", "0")
    ]
    assert steps[0]["resources"] == {"limits": {"cpu": 2}}
    assert all(
        step["command"] == ["pds-engine", "warmup", "--config", "/etc/pds/engine.json"]
        for step in steps
    )
    mounted = [next(m["subPath"] for m in step["volumeMounts"] if "subPath" in m) for step in steps]
    assert mounted == ["prefill.json", "prefill.json", "decode.json"]
    assert pod_spec["restartPolicy"] == "Never"
    assert {volume["name"] for volume in pod_spec["volumes"]} >= {"config", "keys", "cache"}
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert (labels["pdserving.io/role"], labels["pdserving.io/revision"]) == ("warmup", "abc")


def ended(message: str, code: int = 1) -> dict:
    state = {"terminated": {"exitCode": code, "message": message}}
    return {
        "metadata": {"name": "w", "labels": {"pdserving.io/revision": "abc"}},
        "status": {"initContainerStatuses": [{"name": "prefill-0", "state": state}]},
    }


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ('{"manifest": "", "error": "graph decode: boom"}', "graph decode: boom"),
        ('{"error": "model.path: no folder", "hint": "mount it"}', "model.path: no folder"),
        ("Killed", "Killed"),
        ("", "container prefill-0 ended with exit code 1"),
    ],
)
def test_what_a_failed_warm_up_says(message, error):
    nothing = frozenset({""})  # its one step says of no target
    assert warmup_facts(ended(message)) == WarmupPod("w", "abc", error=error, targets=nothing)


def test_what_a_warm_up_compiled_for():
    assert warmup_facts(ended('{"target": "sm_90"}', 0)).targets == {"sm_90"}


def test_what_a_warm_up_without_its_image_says():
    obj = ended("")
    waiting = {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}
    obj["status"]["initContainerStatuses"][0]["state"] = {"waiting": waiting}
    assert warmup_facts(obj) == WarmupPod(
        "w", "abc", waits="ImagePullBackOff: Back-off pulling image"
    )
