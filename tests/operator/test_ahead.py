"""Jobs for GPUs that are not there: made, followed, told, and waited for by no pod."""

from typing import Any

import pytest
from pds_operator.decide.status import status
from pds_operator.facts.observed import ScopeFailure, WarmupPod
from worlds import NOW, World, desired, digest, raw_spec


def spec(*targets: str, image: str = "engine:1", **warm: Any) -> dict[str, Any]:
    given = {**({"targets": list(targets)} if targets else {}), **warm}
    return raw_spec(image=image, compileCache={"volume": {"existingClaim": "c"}, "warmup": given})


RAW = spec("sm_90")
JOB = f"chat-{digest(RAW)}-sm-90"
READY = ["chat-p-0-0-0", "chat-d-0-0-0", "chat-p-1-0-0"]


@pytest.fixture
def world() -> World:
    """Its pods run, and the Job compiles."""
    world = World(RAW)
    world.compiles = True
    world.settle()
    world.now = NOW + 60
    return world


def pod(**facts: Any) -> tuple[WarmupPod]:
    return (WarmupPod(f"{JOB}-x", digest(RAW), owner=f"uid-Job-{JOB}", **facts),)


def kernels(world: World) -> tuple[str, str]:
    written = status(world.observed(), desired(world.raw), world.plan(), {}, world.now)
    [found] = [item for item in written["conditions"] if item["type"] == "KernelsWarm"]
    return found["reason"], found["message"]


def test_a_first_start_makes_the_pods_and_the_job_in_one_round():
    rounds = World(RAW).settle()
    assert rounds[1] == [*READY, f"job {JOB}"]


def test_a_target_is_added_without_a_rollout(world):
    world.raw = spec("sm_90", "sm_100")
    assert world.settle() == [[f"job chat-{digest(RAW)}-sm-100"]]
    world.raw = spec("sm_100")
    assert world.settle() == [[f"delete job {JOB}"]]


def test_a_held_rollout_fills_nothing(world):
    world.end_job()
    world.raw = {**spec("sm_90", image="engine:2"), "rollout": {"paused": True}}
    assert world.settle() == [
        [f"controllerrevision chat-{digest(world.raw)}"],
        [f"delete job {JOB}"],
    ]


def test_a_job_that_has_ended_stays_and_is_made_once(world):
    world.warmups = pod(scheduled=True)
    assert "for sm_90: compiling" in kernels(world)[1]
    world.end_job()
    world.warmups = pod(scheduled=True, targets=frozenset({"sm_90"}))
    world.now += 4000
    assert world.settle() == []
    assert "for sm_90: compiled" in kernels(world)[1]
    world.warmups = ()  # its node is gone
    assert "for sm_90: ended" in kernels(world)[1]


@pytest.mark.parametrize("targets", [(), ("",), ("sm_90", ""), ("sm_100",)])
def test_a_job_that_does_not_prove_its_target_has_compiled_for_another(world, targets):
    """An engine of the release before compiles for its own machine, and ends well."""
    world.end_job()
    world.warmups = pod(scheduled=True, targets=frozenset(targets))
    reason, message = kernels(world)
    assert reason == "WarmupJobFailed"
    assert "for sm_90: not proved" in message
    assert "does not say that it compiled for sm_90" in message


def test_a_new_revision_has_its_own(world):
    world.end_job()
    world.raw = spec("sm_90", image="engine:2")
    new = digest(world.raw)
    done = [text for texts in world.settle() for text in texts if "job" in text]
    assert done[:3] == [f"job chat-{new}-warmup", f"delete job {JOB}", f"job chat-{new}-sm-90"]


def test_no_pod_waits_for_a_job_that_finds_no_node(world):
    world.warmups = pod(unscheduled="0/3 nodes are available")
    world.now = NOW + 119
    assert "for sm_90: compiling" in kernels(world)[1]
    world.now = NOW + 121
    reason, message = kernels(world)
    assert reason == "WarmupJobPending"
    assert "no node takes its pod: 0/3 nodes are available" in message
    assert world.settle() == []  # a node may come: it stays as it is


def test_a_job_whose_nodes_are_chosen_anew_is_made_again(world):
    world.warmups = pod(unscheduled="0/3 nodes are available")
    world.raw = spec("sm_90", nodeSelector={"pool": "cpu"})
    assert world.round() == [f"delete job {JOB}"]
    assert world.round() == [f"job {JOB}"]
    live = world.objects["Job", JOB]
    assert live["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "cpu"}
    world.end_job()
    world.raw = RAW
    assert world.round() == []


def test_a_job_that_is_refused_is_told_and_tried_again(world):
    del world.objects["Job", JOB]
    scope = f"Job/{JOB}"
    said = f"create job {JOB}: exceeded quota: q"
    world.failures = {scope: ScopeFailure("QuotaExceeded", said, 1, world.now + 5, world.now)}
    assert world.plan().actions == ()
    reason, message = kernels(world)
    assert reason == "WarmupJobRefused"
    assert "for sm_90: refused" in message
    assert f"{said}; raise the namespace's quota of jobs" in message
    world.now += 6
    assert world.round() == [f"job {JOB}"]


def test_a_job_that_fails_says_how_to_run_it_again(world):
    world.warmups = pod(scheduled=True, error="nvcc: not found")
    world.end_job("Failed")
    assert kernels(world)[0] == "WarmupJobFailed"
    assert f"nvcc: not found; once that is mended: kubectl delete job {JOB}" in kernels(world)[1]
    assert {item.revision for item in world.pods.values()} == {digest(RAW)}
    assert world.settle() == []
    assert not world.revisions[digest(RAW)].failed


def test_what_the_volume_did_not_take_is_told(world):
    world.warmups = pod(scheduled=True, volume="the compile cache's volume is full")
    world.end_job()
    assert kernels(world)[0] == "WarmupJobFailed"
    assert (
        "could not store what it compiles: the compile cache's volume is full"
        in (kernels(world)[1])
    )


def test_where_no_volume_is_shared_nothing_is_filled():
    raw = raw_spec(compileCache={"warmup": {"targets": ["sm_90"]}})
    assert not any("job" in text for texts in World(raw).settle() for text in texts)
