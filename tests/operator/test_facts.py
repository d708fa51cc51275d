"""What is read from pods: which have ended, and by whose fault."""

import pytest
from pds_operator import names
from pds_operator.facts.observed import Pod
from pds_operator.facts.reading import pod_facts


def facts(status: dict, spec: dict | None = None) -> Pod:
    labels = {
        names.NAME: "chat",
        names.ROLE: "decode",
        names.GROUP_INDEX: "0",
        names.ATTEMPT: "0",
        names.RANK_POD: "0",
    }
    meta = {"name": "chat-d-0-0-0", "uid": "u", "labels": labels}
    meta["creationTimestamp"] = "2026-01-01T00:00:00Z"
    found = pod_facts({"metadata": meta, "spec": spec or {}, "status": status})
    assert found is not None
    return found


def ended(name: str, code: int) -> dict:
    over = {"exitCode": code, "finishedAt": "2026-01-01T00:01:00Z", "message": f"{name} ended"}
    return {"name": name, "state": {"terminated": over}}


def runs(name: str) -> dict:
    return {"name": name, "started": True, "state": {"running": {}}}


def test_a_dead_engine_beside_a_living_sidecar_has_failed():
    found = facts({"phase": "Running", "containerStatuses": [runs("proxy"), ended("engine", 137)]})
    assert found.failed
    assert (found.exit_code, found.message) == (137, "engine ended")


def test_an_engine_that_ended_well_beside_a_sidecar_is_over_too():
    found = facts({"phase": "Running", "containerStatuses": [runs("proxy"), ended("engine", 0)]})
    assert found.failed
    assert (found.end, found.message) == ("ended with exit code 0", "engine ended")
    assert found.failed_at == found.created + 60


def test_a_pod_whose_end_nobody_saw_has_no_exit_code():
    found = facts(
        {"phase": "Failed", "reason": "Evicted", "message": "the node is short of memory"}
    )
    assert (found.end, found.disrupted) == ("ended", "Evicted")
    assert found.message == "the node is short of memory"


def test_a_dead_sidecar_beside_a_living_engine_is_no_failure():
    found = facts({"phase": "Running", "containerStatuses": [ended("proxy", 1), runs("engine")]})
    assert not found.failed


def test_the_engine_says_why_before_a_sidecar_does():
    statuses = [ended("proxy", 143), ended("engine", 78)]
    found = facts({"phase": "Failed", "containerStatuses": statuses})
    assert (found.exit_code, found.message) == (78, "engine ended")


def test_a_failed_init_container_beside_a_native_sidecar_has_failed():
    spec = {"initContainers": [{"name": "proxy", "restartPolicy": "Always"}, {"name": "warmup"}]}
    status = {"phase": "Pending", "initContainerStatuses": [runs("proxy"), ended("warmup", 1)]}
    assert facts(status, spec).failed
    status = {"phase": "Pending", "initContainerStatuses": [ended("proxy", 1)]}
    assert not facts(status, spec).failed  # it is started again


@pytest.mark.parametrize(
    "reason", ["Evicted", "UnexpectedAdmissionError", "OutOfcpu", "NodeShutdown", "Terminated"]
)
def test_what_a_kubelet_ends_is_disrupted(reason):
    found = facts({"phase": "Failed", "reason": reason, "message": "The node was low on memory"})
    assert found.failed
    assert found.disrupted == reason


def test_a_disruption_target_is_disrupted_whatever_its_containers_say():
    target = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
    found = facts(
        {"phase": "Failed", "conditions": [target], "containerStatuses": [ended("engine", 137)]}
    )
    assert found.disrupted == "PreemptionByScheduler"


def test_what_ends_by_itself_is_not_disrupted():
    assert not facts({"phase": "Failed", "containerStatuses": [ended("engine", 1)]}).disrupted
    assert not facts({"phase": "Failed", "reason": "DeadlineExceeded"}).disrupted


def test_a_native_sidecar_that_ends_with_the_engine_hides_nothing():
    """The kubelet ends it when the engine has ended: mostly with 143."""
    spec = {"initContainers": [{"name": "proxy", "restartPolicy": "Always"}, {"name": "warmup"}]}
    over = ended("engine", 78)
    over["state"]["terminated"]["message"] = '{"error": "kv: too few pages", "hint": "raise it"}'
    status = {
        "phase": "Failed",
        "initContainerStatuses": [ended("proxy", 143), ended("warmup", 0)],
        "containerStatuses": [over],
    }
    found = facts(status, spec)
    assert (found.exit_code, found.message) == (78, "kv: too few pages (raise it)")
    status["initContainerStatuses"] = [ended("proxy", 143), ended("warmup", 1)]
    status["containerStatuses"] = []
    assert facts(status, spec).message == "warmup ended"


@pytest.mark.parametrize(("code", "reason"), [(137, "ContainerStatusUnknown"), (255, "Unknown")])
def test_what_ran_when_its_node_went_down_is_disrupted(code, reason):
    over = ended("engine", code)
    over["state"]["terminated"]["reason"] = reason
    found = facts({"phase": "Failed", "containerStatuses": [over]})
    assert found.disrupted == reason


ODD = "oh\ud800\x1b[2J\nrouter  10/10 ready\u202e"


def test_what_pods_say_is_one_line_that_can_be_stored_and_shown():
    over = ended("engine", 1)
    over["state"]["terminated"]["message"] = ODD
    waits = {"name": "engine", "state": {"waiting": {"reason": "Odd", "message": ODD}}}
    unscheduled = {"type": "PodScheduled", "status": "False", "message": ODD}
    found = [
        facts({"phase": "Failed", "containerStatuses": [over]}).message,
        facts({"containerStatuses": [waits]}).waits,
        facts({"conditions": [unscheduled]}).unscheduled,
        facts({"phase": "Failed", "reason": "Evicted", "message": ODD}).message,
    ]
    for text in found:
        assert "oh" in text
        assert text.isprintable()
        text.encode()


def test_a_native_sidecar_that_crashes_again_and_again():
    """A kubelet may show one that is backed off as terminated, not as waiting."""
    spec = {"initContainers": [{"name": "proxy", "restartPolicy": "Always"}, {"name": "warmup"}]}
    over = {"terminated": {"exitCode": 3, "reason": "Error"}}
    down = {"name": "proxy", "restartCount": 2, "state": over}
    up = {**down, "lastState": over, "state": {"running": {"startedAt": "2026-01-01T00:00:09Z"}}}
    found = facts({"initContainerStatuses": [up]}, spec)
    assert found.crashes == "container proxy ends again and again: exit code 3, Error"
    assert found.crashing(found.created + 60)
    assert not found.crashing(found.created + 70)
    assert facts({"initContainerStatuses": [down]}, spec).crashing(found.created + 500)
    forgotten = facts({"initContainerStatuses": [{**up, "lastState": {}}]}, spec)
    assert forgotten.crashes == "container proxy ends again and again"
    once = {**up, "restartCount": 1}
    assert not facts({"initContainerStatuses": [once]}, spec).crashing(found.created + 10)
    assert not facts({"initContainerStatuses": [up]}).crashing(found.created + 10)  # no sidecar
