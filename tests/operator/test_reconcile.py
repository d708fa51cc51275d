"""Observe, plan, act, write the status: with an API server and pods in memory."""

import asyncio
import time

import pytest
from bench import KEY, Bench
from pds_operator import errors
from pds_operator.facts.observed import RouterView
from pds_operator.run.reconcile import Reconciler, settle
from pds_operator.settings import Settings


def test_a_plan_that_takes_long_is_made_less_often():
    assert [settle(seconds) for seconds in (0.0, 0.0005, 0.01, 3.0)] == [0.02, 0.02, 0.2, 1.0]


async def test_from_nothing_to_ready(bench):
    assert bench.api.names("Pod") == [
        "chat-d-0-0-0",
        "chat-p-0-0-0",
        "chat-p-1-0-0",
        "chat-router-x",
    ]
    assert bench.condition("Ready") == ("True", "Routable")
    assert bench.condition("Progressing") == ("False", "Complete")
    assert bench.condition("Degraded") == ("False", "AsExpected")
    assert bench.status["prefill"]["summary"] == "2/2"
    assert bench.status["decode"]["summary"] == "1/1"
    assert bench.status["endpoint"] == "http://chat.team.svc:8000"
    assert bench.status["currentRevision"] == bench.status["targetRevision"]


async def test_a_reconcile_of_an_unchanged_cluster_writes_nothing(bench):
    for _ in range(5):
        wait, calls = await bench.round()
        assert calls == []
        assert wait == 5  # everything is settled, but for Secrets, which nobody watches


async def test_a_restart_writes_nothing(bench):
    again = Reconciler(bench.api, bench.pods, Settings(), lambda: True, lambda: bench.now)
    for obj in list(bench.api.objects.values()):
        (again.store.put_parent if obj["kind"] == "PDServing" else again.store.put)(obj)
    bench.api.calls.clear()
    await again.once(KEY)
    assert bench.api.calls == []


async def test_who_does_not_lead_writes_nothing():
    bench = Bench()
    bench.leads = False
    with pytest.raises(errors.NotLeading):
        await bench.round()
    assert bench.api.calls == []


async def test_a_lease_that_is_lost_in_a_round_ends_it_before_the_next_write():
    bench = Bench()
    create = bench.api.create

    async def create_and_lose(obj, **options):
        bench.leads = False
        return await create(obj, **options)

    bench.api.create = create_and_lose
    with pytest.raises(errors.NotLeading):
        await bench.round()
    assert bench.api.calls == ["create Secret chat-control"]


async def test_a_server_without_room_ends_the_round_and_is_left_alone_for_a_while():
    """No later call of the round either, nor the status: each would be refused."""
    bench = Bench(probe_seconds=0.01)
    busy = errors.Throttled(429, "TooManyRequests", "try again later")
    busy.after = 0.3
    asked: asyncio.Queue[float] = asyncio.Queue()

    def refuse(verb, obj):
        if obj["kind"] != "Service":
            return None
        asked.put_nowait(time.monotonic())
        return busy if asked.qsize() == 1 else None

    bench.api.refuse = refuse
    with pytest.raises(errors.Throttled):
        await bench.round()
    assert bench.api.calls[-1] == "create Service chat-ranks"
    assert "status" not in bench.api.one("PDServing", "chat")
    await asked.get()
    await bench.reconciler.start()
    bench.reconciler.mark(KEY)
    refused = await asked.get()
    calls = list(bench.api.calls)
    while time.monotonic() < refused + 0.25:
        bench.reconciler.mark(KEY)  # whatever changes meanwhile
        await asyncio.sleep(0.01)
    assert bench.api.calls == calls
    assert await asked.get() >= refused + 0.3
    await bench.reconciler.stop()


async def test_a_foreign_service_is_left_alone_and_named():
    bench = Bench()
    foreign = bench.api.put(
        {"kind": "Service", "metadata": {"name": "chat", "namespace": "team"}, "spec": {}}
    )
    await bench.settle()
    assert bench.api.one("Service", "chat") == foreign
    assert bench.condition("Degraded") == ("True", "NameTaken")
    [message] = [c["message"] for c in bench.status["conditions"] if c["type"] == "Degraded"]
    assert "Service chat exists and is not owned by this PDServing" in message


async def test_what_a_pod_said_is_not_believed_of_the_next_one_of_its_name():
    bench = Bench(probe_seconds=10)
    await bench.settle()
    old = bench.api.one("Pod", "chat-d-0-0-0")
    bench.pods.drained.add(old["status"]["podIP"])

    async def nobody(routers):
        return [RouterView(pod, {}) for pod, _ in routers]

    bench.pods.views = nobody
    bench.now += 10
    await bench.round()  # it drains, has nothing left, and no router would choose it
    drain = {"pdserving.io/draining": "true"}
    meta = {**old["metadata"], "uid": "uid-next", "labels": old["metadata"]["labels"] | drain}
    meta["annotations"] = {"pdserving.io/drain-deadline": "2100-01-01T00:00:00Z"}
    bench.api.put({**old, "metadata": meta})
    _, calls = await bench.round()
    assert "delete Pod chat-d-0-0-0" not in calls
    bench.now += 10
    _, calls = await bench.round()
    assert "delete Pod chat-d-0-0-0" in calls


async def test_a_quota_is_a_condition_and_goes_away_with_it(bench):
    def full(verb, obj):
        if obj["kind"] == "Pod":
            return errors.from_status(403, {"message": "exceeded quota: pods"})
        return None

    bench.api.refuse = full
    parent = bench.api.one("PDServing", "chat")
    parent["spec"]["prefill"]["replicas"] = 3
    bench.api.put(parent)
    for _ in range(3):
        await bench.round()
    assert bench.condition("Degraded") == ("False", "AsExpected")  # it may pass in a moment
    bench.now += 30
    await bench.round()
    assert bench.condition("Degraded") == ("True", "QuotaExceeded")
    assert bench.condition("Ready") == ("True", "Routable")
    bench.api.refuse = lambda verb, obj: None
    bench.now += 60
    await bench.settle()
    assert bench.condition("Degraded") == ("False", "AsExpected")
    assert bench.status["prefill"]["summary"] == "3/3"


async def test_a_refused_pod_template_is_a_condition_and_makes_no_revision(bench):
    def invalid(verb, obj):
        if obj["kind"] == "Pod":
            return errors.from_status(422, {"message": "spec.priority: Forbidden"})
        return None

    before = bench.api.names("ControllerRevision")
    bench.api.refuse = invalid
    parent = bench.api.one("PDServing", "chat")
    parent["spec"]["decode"]["podTemplate"] = {"spec": {"priority": 5}}
    bench.api.put(parent)
    for _ in range(3):
        await bench.round()
    assert bench.condition("Degraded") == ("True", "Invalid")
    assert bench.api.names("ControllerRevision") == before
    assert bench.condition("Ready") == ("True", "Routable")


async def test_scale_down_drains_before_it_deletes(bench):
    bench.pods.in_flight["chat-p-1-0-0"] = 2
    parent = bench.api.one("PDServing", "chat")
    parent["spec"]["prefill"]["replicas"] = 1
    bench.api.put(parent)
    _, calls = await bench.round()
    assert "patch Pod chat-p-1-0-0" in calls
    for _ in range(3):
        _, calls = await bench.round()
        assert not any(call.startswith("delete") for call in calls)
    assert bench.status["prefill"]["draining"] == 1
    bench.pods.in_flight.clear()
    bench.pods.views = _nobody
    _, calls = await bench.round()
    assert "delete Pod chat-p-1-0-0" in calls


async def _nobody(routers):
    return [RouterView(pod, {"chat-p-0-0-0": True, "chat-d-0-0-0": True}) for pod, _ in routers]


async def test_a_spec_older_than_the_schema_is_reported_and_what_runs_goes_on(bench):
    parent = bench.api.one("PDServing", "chat")
    parent["spec"]["engine"] = {"chunkSise": 64}
    bench.api.put(parent)
    _, calls = await bench.round()
    assert calls == ["patch PDServing chat", "create Event InvalidSpec"]
    assert bench.condition("Degraded") == ("True", "InvalidSpec")
    assert bench.condition("Progressing") == ("False", "InvalidSpec")
    assert bench.condition("Ready") == ("True", "Routable")
    _, calls = await bench.round()
    assert calls == []


async def test_an_object_that_is_being_deleted_is_left_to_the_collector(bench):
    parent = bench.api.one("PDServing", "chat")
    parent["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    bench.api.put(parent)
    _, calls = await bench.round()
    assert calls == []
