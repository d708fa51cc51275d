"""What a PDServing says of itself."""

import dataclasses

import pytest
from pds_operator.decide.status import status, transitions
from pds_operator.facts.observed import LeaderState, Proof, ScopeFailure
from pds_operator.revision import digest
from worlds import NOW, World, desired, raw_spec

WARM = {"compileCache": {"volume": {"existingClaim": "c"}}}


@pytest.fixture
def world() -> World:
    world = World(raw_spec(**WARM))
    world.settle()
    return world


def written(world: World, previous: dict | None = None, **observed) -> dict:
    seen = dataclasses.replace(world.observed(), **observed)
    return status(seen, desired(world.raw), world.plan(), previous or {}, world.now)


def condition(status: dict, kind: str) -> tuple[str, str]:
    [found] = [item for item in status["conditions"] if item["type"] == kind]
    return found["status"], found["reason"]


def message(status: dict, kind: str) -> str:
    return next(item["message"] for item in status["conditions"] if item["type"] == kind)


def prove(world: World, **changes: object) -> dict[str, LeaderState]:
    proof = dataclasses.replace(Proof("m1", compiled=2, reused=1), **changes)
    for name in world.pods:
        world.change(name, proof=proof)
    return {name: LeaderState(manifest="m1", fingerprint="kv") for name in world.pods}


def test_warm_kernels_are_said_with_what_they_do_not_cover(world):
    states = prove(world, eager=("attention over pages", "experts"))
    text = message(written(world, states=states), "KernelsWarm")
    assert text.endswith(" reused; manifest m1; not compiled: attention over pages, experts")


def test_pods_on_another_kind_of_processor_prove_a_manifest_of_their_own(world):
    states = prove(world)
    world.change("chat-d-0-0-0", proof=Proof("m2" * 32, compiled=2))
    states["chat-d-0-0-0"] = LeaderState(manifest="m2" * 32, fingerprint="kv")
    said = written(world, states=states)
    assert condition(said, "KernelsWarm") == ("True", "Warm")
    assert "; manifests m1, m2m2m2m2m2m2" in message(said, "KernelsWarm")


def test_a_settled_world(world):
    states = prove(world)
    said = written(world, states=states)
    assert {c["type"]: (c["status"], c["reason"]) for c in said["conditions"]} == {
        "Ready": ("True", "Routable"),
        "Progressing": ("False", "Complete"),
        "KernelsWarm": ("True", "Warm"),
        "Degraded": ("False", "AsExpected"),
        "Reconciling": ("False", "Complete"),
        "Stalled": ("False", "AsExpected"),
    }
    assert said["prefill"] == {
        "desired": 2,
        "created": 2,
        "ready": 2,
        "updated": 2,
        "warm": 2,
        "draining": 0,
        "summary": "2/2",
    }
    assert said["router"] == {"desired": 1, "ready": 1}
    assert said["currentRevision"] == said["targetRevision"]


def test_warm_needs_the_engine_to_run_what_the_warm_up_proved(world):
    states = prove(world)
    states["chat-d-0-0-0"] = LeaderState(manifest="another")
    said = written(world, states=states)
    assert condition(said, "KernelsWarm") == ("False", "WarmingUp")
    assert said["decode"]["warm"] == 0


def test_a_compilation_after_ready_is_reported(world):
    states = prove(world)
    states["chat-d-0-0-0"] = LeaderState(manifest="m1", compiles_after_ready=3)
    assert condition(written(world, states=states), "KernelsWarm") == (
        "False",
        "CompiledAfterReady",
    )


def test_a_failed_warm_up_is_reported(world):
    prove(world, error="g++: No space left on device")
    assert condition(written(world), "KernelsWarm") == ("False", "WarmupFailed")


def test_pods_that_can_never_pair_are_reported(world):
    states = prove(world)
    states["chat-d-0-0-0"] = LeaderState(manifest="m1", fingerprint="other")
    assert condition(written(world, states=states), "Degraded") == ("True", "KvFingerprintMismatch")


def test_ready_needs_a_pair_and_a_router(world):
    assert condition(written(world), "Ready") == ("True", "Routable")
    world.change("chat-d-0-0-0", ready=False)
    assert condition(written(world), "Ready") == ("False", "NoRoutableGroup")
    world.objects["Deployment", "chat-router"]["status"]["readyReplicas"] = 0
    assert condition(written(world), "Ready") == ("False", "NoRouter")


def test_progress_says_what_it_is_doing(world):
    reasons = []
    world.raw = raw_spec(**WARM, image="engine:2")
    for _ in range(12):
        world.round()
        world.turn_ready()
        world.bury()
        reasons.append(condition(written(world), "Progressing")[1])
    assert reasons[:3] == ["WarmupRunning", "RollingOut", "RollingOut"]
    assert reasons[-1] == "Complete"
    world.raw = raw_spec(**WARM, image="engine:2", prefill={"replicas": 1})
    world.busy = dict.fromkeys(world.pods, 1)
    world.round()
    assert condition(written(world), "Progressing") == ("True", "Draining")


def test_transition_times_move_only_with_the_status(world):
    first = written(world)
    world.now = NOW + 100
    second = written(world, first)
    assert second["conditions"] == first["conditions"]
    world.change("chat-d-0-0-0", ready=False)
    third = written(world, second)
    moved = {c["type"] for c in third["conditions"] if c not in second["conditions"]}
    assert moved == {"Ready", "Progressing", "Reconciling"}
    assert [kind for kind, _, _ in transitions(second, third)] == ["Ready", "Progressing"]


def test_the_serving_revision_changes_at_the_end_of_a_rollout(world):
    before = written(world)
    world.raw = raw_spec(**WARM, image="engine:2")
    world.round()
    during = written(world, before)
    assert during["currentRevision"] == before["currentRevision"] != during["targetRevision"]
    world.settle()
    after = written(world, during)
    assert after["currentRevision"] == after["targetRevision"] == during["targetRevision"]


@pytest.mark.parametrize(
    ("rollout", "reason"), [({"paused": True}, "Paused"), ({"partition": 2}, "PartitionReached")]
)
def test_a_held_rollout_says_so(world, rollout, reason):
    world.now += 60
    world.raw = raw_spec(**WARM, image="engine:2", rollout={"drainSeconds": 60, **rollout})
    world.settle()
    said = written(world)
    assert condition(said, "Progressing") == ("False", reason)
    assert message(said, "Progressing").startswith("held at step 0 of 2 by spec.rollout")


def test_a_rollout_of_routers_is_reported(world):
    assert condition(written(world), "Progressing") == ("False", "Complete")
    world.raw = {**world.raw, "router": {"replicas": 3}}
    assert condition(written(world), "Progressing") == ("True", "RollingOut")
    assert condition(written(world), "Reconciling") == ("True", "RollingOut")
    world.settle()
    assert condition(written(world), "Progressing")[0] == "True"
    live = world.objects["Deployment", "chat-router"]
    live["status"].update(replicas=3, updatedReplicas=3, readyReplicas=3)
    assert condition(written(world), "Progressing") == ("False", "Complete")


def test_an_edit_that_is_refused_is_no_complete_rollout(world):
    before, template = written(world), {"spec": {"hostname": "mine"}}
    world.raw = raw_spec(**WARM, decode={"replicas": 1, "podTemplate": template})
    said = written(world, before)
    assert condition(said, "Progressing") == ("False", "InvalidSpec")
    assert condition(said, "Stalled") == ("True", "InvalidSpec")
    assert condition(said, "Ready") == ("True", "Routable")
    assert [kind for kind, _, _ in transitions(before, said)] == ["Degraded"]


@pytest.mark.parametrize(("reason", "state"), [("Invalid", "False"), ("QuotaExceeded", "True")])
def test_a_revision_that_the_api_server_takes_not_yet_may_come(world, reason, state):
    world.raw = raw_spec(**WARM, image="engine:2")
    failure = ScopeFailure(reason, "try out pod: no", 3, world.now + 60, world.now - 60)
    world.failures = {f"revision/{digest(world.raw)}": failure}
    said = written(world)
    assert condition(said, "Progressing") == (state, reason)
    assert condition(said, "Reconciling")[0] == state
    assert condition(said, "Stalled")[0] != state


def test_engines_that_wait_for_routers_say_so(world):
    world.raw = raw_spec(**WARM, image="engine:2")
    world.objects["Deployment", "chat-router"]["status"]["updatedReplicas"] = 0
    world.round()
    world.round()
    world.end_job()
    assert "routers are replaced first" in message(written(world), "Progressing")


def test_what_serves_is_named_though_it_never_stood_whole(world):
    """Nothing is left of the revision that did."""
    whole = written(world)["currentRevision"]
    world.raw = raw_spec(
        image="engine:2",
        prefill={"replicas": 2},
        rollout={"drainSeconds": 60, "maxSurge": 0, "maxUnavailable": "100%"},
    )
    for _ in range(8):
        world.round()
        world.turn_ready()
        world.bury()
    new = sorted(pod.name for pod in world.pods.values() if pod.role == "prefill")
    world.change(new[0], ready=False)
    said = written(world)
    assert said["currentRevision"] not in ("", whole)


def test_no_message_is_longer_than_a_status_may_hold(world):
    names_of = list(world.pods)
    states = {name: LeaderState(compiles_after_ready=9) for name in names_of}
    for name in names_of:
        world.change(name, containers_ready=False, ready=False, fallen="x" * 40_000)
    said = written(world, states=states)
    assert max(len(item["message"]) for item in said["conditions"]) <= 2000


def test_a_partition_whose_groups_are_gone_is_not_over(world):
    world.raw = raw_spec(image="engine:2", rollout={"drainSeconds": 60, "partition": "100%"})
    world.round()
    world.round()
    assert condition(written(world), "Progressing") == ("False", "PartitionReached")
    assert condition(written(world), "Reconciling") == ("False", "PartitionReached")
    world.change("chat-p-0-0-0", ready=False)
    assert condition(written(world), "Reconciling") == ("True", "PartitionReached")
