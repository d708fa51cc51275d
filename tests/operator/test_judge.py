"""Revisions that show to be bad, and what becomes of them."""

import pytest
from pds_operator.decide.actions import Say
from pds_operator.decide.status import status
from pds_operator.facts.observed import NO_PROOF, Proof, RouterPod, ScopeFailure, rfc3339
from worlds import NOW, ROUTER, World, desired, digest, problems, raw_spec

GOOD = digest(raw_spec())
BAD = raw_spec(image="engine:2")
DEADLINE = 1800


@pytest.fixture
def world() -> World:
    """A minute into the life of a good revision; a bad one has its first groups."""
    world = World(raw_spec())
    world.settle()
    world.now += 60
    world.raw = BAD
    world.round()
    world.round()
    assert {"chat-p-2-0-0", "chat-d-1-0-0"} < set(world.pods)
    return world


def failed(world: World) -> str:
    """Why the revision is given up in this round, if it is."""
    world.round()
    return world.revisions[digest(world.raw)].failed


def test_a_failed_warm_up(world):
    world.fail("chat-d-1-0-0")
    world.change("chat-d-1-0-0", proof=Proof("", error="graph decode: g++ failed"))
    assert failed(world) == "WarmupFailed: chat-d-1-0-0: graph decode: g++ failed"


def test_a_warm_up_that_was_killed_is_tried_again(world):
    world.fail("chat-d-1-0-0", exit_code=137)
    world.change("chat-d-1-0-0", proof=Proof("", error=NO_PROOF))
    assert failed(world) == ""


def test_a_configuration_that_cannot_work(world):
    world.fail("chat-p-2-0-0", exit_code=78, message="model.path: cannot read")
    assert failed(world) == "ConfigurationError: chat-p-2-0-0: model.path: cannot read"


def test_three_failures_in_a_row(world):
    for attempt in range(2):
        world.fail(f"chat-p-2-{attempt}-0", message="CUDA error")
        assert failed(world) == ""
        world.now += 15
        world.round()
        world.bury()
    world.fail("chat-p-2-2-0", message="CUDA error")
    assert failed(world) == (
        "CrashLoop: chat-p-2-2-0 ended with exit code 1, 3 failures in a row: CUDA error"
    )


def test_groups_that_are_not_ready_by_the_deadline(world):
    for name in ("chat-p-2-0-0", "chat-d-1-0-0"):
        world.change(name, scheduled=True, message="ImagePullBackOff: no such tag")
    world.wait(DEADLINE - 1)
    assert failed(world) == ""
    world.wait(1)
    assert failed(world).startswith("ProgressDeadlineExceeded: chat-p-2-0-0: ImagePullBackOff: no")


def test_a_lack_of_nodes_or_quota_speaks_against_no_revision(world):
    world.wait(DEADLINE)
    assert failed(world) == ""  # nobody has scheduled them yet
    for name in ("chat-p-2-0-0", "chat-d-1-0-0"):
        world.change(name, scheduled=True)
    world.failures = {"group/prefill/3": ScopeFailure("QuotaExceeded", "gpus", 9, world.now + 9000)}
    world.wait(DEADLINE)
    assert failed(world) == ""
    world.failures = {}
    world.wait(DEADLINE - 60)
    assert failed(world) == ""
    world.wait(90)
    assert failed(world)


HINDRANCES = {
    "no operator": lambda world: setattr(world, "now", world.now + 7200),
    "no router": lambda world: setattr(world, "router_pods", ()),
    "routers that crash": lambda world: setattr(world, "router_pods", (CRASHING,)),
    "a volume that is gone": lambda world: [
        world.change(name, unprepared=world.now) for name in ("chat-p-2-0-0", "chat-d-1-0-0")
    ],
    "no node for routers": lambda world: setattr(world, "router_pods", (ROUTER, HOMELESS)),
    "paused": lambda world: setattr(world, "raw", raw_spec(image="engine:2", rollout=PAUSED)),
    "held": lambda world: setattr(world, "raw", raw_spec(image="engine:2", rollout=HELD)),
}
CRASHING = RouterPod("chat-router-0", "", False, waits="CrashLoopBackOff: back-off 5m0s")
HOMELESS = RouterPod("chat-router-x", "", False, unscheduled="0/3 nodes are available")
PAUSED = {"drainSeconds": 60, "paused": True}
HELD = {"drainSeconds": 60, "partition": "100%"}


@pytest.mark.parametrize("hinder", HINDRANCES.values(), ids=HINDRANCES)
def test_time_in_which_nothing_could_be_done_counts_for_nothing(world, hinder):
    for name in ("chat-p-2-0-0", "chat-d-1-0-0"):
        world.change(name, scheduled=True)
    world.wait(60)
    before = world.now
    hinder(world)
    world.wait(before + 7200 - world.now)
    world.router_pods, world.raw = (ROUTER,), BAD
    for name in ("chat-p-2-0-0", "chat-d-1-0-0"):
        world.change(name, unprepared=None)
    world.wait(DEADLINE - 200)
    assert failed(world) == ""
    world.wait(200)
    assert failed(world).startswith("ProgressDeadlineExceeded")


def test_an_operator_that_starts_again_and_again_counts_on(world):
    """Each look is an operator's first: what is used up stands on the revision."""
    for name in ("chat-p-2-0-0", "chat-d-1-0-0"):
        world.change(name, scheduled=True)
    for _ in range(DEADLINE // 80 + 1):
        assert failed(world) == ""
        world.now += 80
    assert failed(world).startswith("ProgressDeadlineExceeded")


DISRUPTIONS = ("Evicted", "UnexpectedAdmissionError", "OutOfcpu", "NodeShutdown", "Terminated")


def test_disruptions_in_a_row_are_no_evidence(world):
    for attempt, reason in enumerate(DISRUPTIONS):
        name = f"chat-p-2-{attempt}-0"
        world.fail(name, exit_code=137)
        world.change(name, disrupted=reason)
        assert failed(world) == ""
        world.now += 300
        world.round()
        world.bury()
    assert world.pods["chat-p-2-5-0"].failures == 0
    assert world.pods["chat-p-2-5-0"].disruptions == 5


def test_a_pod_that_ends_for_ever_on_a_dead_node_keeps_no_rollout_open():
    world = World(raw_spec())
    world.settle()
    world.now += 60
    world.raw = BAD
    while world.revisions.get(digest(BAD)) is None or not world.revisions[digest(BAD)].served:
        world.round()
        world.turn_ready()
        gone = [name for name, pod in world.pods.items() if pod.deleting]
        world.pods = {k: p for k, p in world.pods.items() if k not in gone or k == "chat-p-0-0-0"}
        if "chat-p-0-0-0" in gone and world.pods["chat-p-0-0-0"].gone_by is None:
            world.change("chat-p-0-0-0", gone_by=world.now + 90)
        world.now += 5
        assert world.now < NOW + 600
    assert world.pods["chat-p-0-0-0"].deleting
    written = status(world.observed(), desired(BAD), world.plan(), {}, world.now)
    [progress] = [item for item in written["conditions"] if item["type"] == "Progressing"]
    assert (progress["status"], progress["reason"]) == ("False", "Complete")


def test_only_what_stood_whole_is_gone_back_to():
    world = World(raw_spec())
    world.round()
    world.round()
    world.turn_ready()
    world.change("chat-d-0-0-0", started=False, containers_ready=False, ready=False)
    world.now += 60
    world.raw = BAD
    world.settle()
    assert world.revisions[GOOD].served is None
    world.fail(max(n for n, p in world.pods.items() if p.revision != GOOD), exit_code=78)
    world.round()
    assert world.revisions[digest(BAD)].failed == ""


def test_evidence_is_not_older_than_the_retry(world):
    """Its pod ended with status 78 an hour before somebody asked for a retry."""
    world.fail("chat-d-1-0-0", exit_code=78, message="no model")
    failed(world)
    world.now += 3600
    obj = world.objects["ControllerRevision", f"chat-{digest(BAD)}"]
    del obj["metadata"]["annotations"]["pdserving.io/failed"]
    obj["metadata"]["annotations"]["pdserving.io/targeted"] = rfc3339(world.now)
    world.revisions[digest(BAD)] = world.stored(obj)
    assert failed(world) == ""


def test_groups_of_one_revision_that_cannot_pair_replace_nobody(world):
    """Two nodes hold two models under one path: the old groups go on, and the status says so."""
    world.fingerprints = {"chat-p-2-0-0": "one", "chat-d-1-0-0": "other"}
    for _ in range(6):
        world.turn_ready()
        world.round()
        world.bury()
    assert sorted(pod.revision for pod in world.pods.values()).count(GOOD) == 3
    written = status(world.observed(), desired(BAD), world.plan(), {}, world.now)
    conditions = {item["type"]: item for item in written["conditions"]}
    assert conditions["Degraded"]["reason"] == "KvFingerprintMismatch"
    assert conditions["Progressing"]["status"] == "True"
    assert conditions["Ready"]["status"] == "True"
    world.wait(DEADLINE + 60)
    assert failed(world).startswith("ProgressDeadlineExceeded")


def test_routers_that_cannot_roll_to_the_new_image():
    world = World(raw_spec())
    world.settle()
    world.now += 60
    world.raw = BAD
    world.round()
    world.objects["Deployment", "chat-router"]["status"]["updatedReplicas"] = 0
    world.router_pods = (ROUTER, HOMELESS)
    world.wait(DEADLINE)
    assert failed(world) == ""
    waits = "ErrImagePull: no such tag"
    world.router_pods = (ROUTER, RouterPod("chat-router-x", "", False, waits=waits))
    world.wait(DEADLINE + 15)
    assert failed(world) == (
        "ProgressDeadlineExceeded: no group of it could be made yet; "
        "chat-router-x: ErrImagePull: no such tag"
    )
    world.round()
    [container] = world.objects["Deployment", "chat-router"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["image"] != "engine:2"


@pytest.mark.parametrize(
    ("new", "old", "bad"),
    [
        ((5, 5), (100, 0), True),
        ((20, 5), (100, 0), True),
        ((4, 4), (100, 0), False),  # too few to say
        ((30, 5), (100, 0), False),  # a sixth
        ((10, 6), (100, 40), False),  # the others do hardly better: it is not the revision
    ],
)
def test_an_error_rate(world, new, old, bad):
    world.counts = {"chat-d-1-0-0": new, "chat-d-0-0-0": old}
    wanted = (
        f"ErrorRate: {new[1]} of {new[0]} requests to it failed, {old[1]} of {old[0]} to others"
    )
    assert failed(world) == (wanted if bad else "")


def test_what_has_failed_makes_room_for_what_was_good(world):
    world.fail("chat-d-1-0-0", exit_code=78, message="no model")
    decided = world.plan()
    [event] = [item for item in decided.actions if isinstance(item, Say)]
    assert event.warning
    assert event.message == (
        f"revision {digest(BAD)} is given up for {GOOD}: ConfigurationError: chat-d-1-0-0: no model"
    )
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {GOOD}
    assert len(world.pods) == 3
    assert world.revisions[GOOD].served == world.revisions[GOOD].since > NOW + 60
    [problem] = world.plan().problems
    assert problem.reason == "RevisionFailed"
    assert problem.message == (
        f"revision {digest(BAD)} of the spec has failed, and {GOOD} serves in its place: "
        "ConfigurationError: chat-d-1-0-0: no model; put the spec right, or: "
        "kubectl pds retry chat"
    )
    assert world.raw == BAD


def test_going_back_from_the_middle(world):
    """Half of the groups are new when the first request fails."""
    while "chat-p-1-0-0" not in world.pods or world.pods["chat-p-1-0-0"].revision == GOOD:
        world.turn_ready()
        world.round()
        world.bury()
    assert sorted(pod.revision == GOOD for pod in world.pods.values()) == [False] * 3 + [True] * 2
    world.counts = {next(n for n, p in world.pods.items() if p.revision != GOOD): (9, 9)}
    assert failed(world).startswith("ErrorRate")
    written = status(world.observed(), desired(BAD), world.plan(), {}, world.now)
    assert written["targetRevision"] == f"chat-{GOOD}"
    [progress] = [item for item in written["conditions"] if item["type"] == "Progressing"]
    assert (progress["status"], progress["reason"]) == ("True", "RollingBack")
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {GOOD}
    assert sum(pod.ready for pod in world.pods.values()) == 3


def test_what_is_gone_back_to_is_not_judged(world):
    world.fail("chat-d-1-0-0", exit_code=78)
    world.settle()
    world.fail("chat-d-0-0-0", exit_code=78)
    world.now += 10 * DEADLINE
    world.settle()
    assert world.revisions[GOOD].failed == ""
    assert {pod.revision for pod in world.pods.values()} == {GOOD}


def test_a_second_bad_revision_goes_back_to_the_good_one_and_not_to_the_first(world):
    world.fail("chat-d-1-0-0", exit_code=78)
    world.settle()
    world.now += 60
    world.raw = raw_spec(image="engine:3")
    for _ in range(3):
        world.round()
    for name in [name for name, pod in world.pods.items() if pod.revision != GOOD]:
        world.fail(name, exit_code=78)
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {GOOD}
    world.now += 60
    world.raw = BAD
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {GOOD}
    assert sorted(bool(item.failed) for item in world.revisions.values()) == [False, True, True]


def test_a_retry_tries_again_with_a_new_clock(world):
    world.fail("chat-d-1-0-0", exit_code=78)
    world.settle()
    world.now += 10_000
    obj = world.objects["ControllerRevision", f"chat-{digest(BAD)}"]
    del obj["metadata"]["annotations"]["pdserving.io/failed"]
    world.revisions[digest(BAD)] = world.stored(obj)
    world.settle()
    assert {pod.revision for pod in world.pods.values()} == {digest(BAD)}
    assert world.revisions[digest(BAD)].since == NOW + 60 + 10_000


def test_it_can_be_left_to_people(world):
    world.raw = raw_spec(image="engine:2", rollout={"drainSeconds": 60, "autoRollback": False})
    world.fail("chat-d-1-0-0", exit_code=78, message="no model")
    assert failed(world) == ""
    assert problems(world) == ["ConfigurationError", "RevisionFailing"]


def test_a_paused_rollout_is_left_to_people(world):
    world.raw = raw_spec(image="engine:2", rollout={"drainSeconds": 60, "paused": True})
    world.fail("chat-d-1-0-0", exit_code=78)
    assert failed(world) == ""


def test_a_first_revision_has_nothing_to_go_back_to():
    world = World(raw_spec())
    world.round()
    world.round()
    world.fail("chat-d-0-0-0", exit_code=78)
    world.now += 10 * DEADLINE
    world.settle()
    assert world.revisions[GOOD].failed == ""
    assert problems(world) == ["ConfigurationError"]


def test_what_once_stood_whole_is_not_judged_any_more():
    world = World(raw_spec())
    world.settle()
    world.now += 60
    world.raw = BAD
    world.settle()
    world.fail("chat-d-1-0-0", exit_code=78)
    world.settle()
    assert world.revisions[digest(BAD)].failed == ""


def test_from_pairs_to_a_bad_unified_and_back(world):
    world.raw = raw_spec(prefill=None, decode=None, unified={"replicas": 2})
    for _ in range(3):
        world.round()
    world.fail("chat-u-0-0-0", exit_code=78)
    world.settle()
    roles = sorted(pod.role for pod in world.pods.values())
    assert roles == ["decode", "prefill", "prefill"]
    assert ("PodDisruptionBudget", "chat-prefill") in world.objects
