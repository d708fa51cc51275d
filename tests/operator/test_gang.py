"""Gangs: what each scheduler gets (golden files), and when."""

import json
import os
from pathlib import Path

import pytest
import yaml
from fake_api import FakeApi
from pds_operator import errors, names, schema
from pds_operator.decide.actions import Create, Delete, Disband, Hold
from pds_operator.decide.plan import plan
from pds_operator.facts.observed import ScopeFailure
from pds_operator.render import engine, gang
from pds_operator.run.cluster import Store
from pds_operator.run.execute import Backoff, Executor
from pds_operator.run.probe import Prober
from pds_operator.settings import Settings
from worlds import NOW, OWNER, World, desired, raw_spec

GOLDEN = Path(__file__).parent / "golden"
STAGED = {"replicas": 1, "parallelism": {"pp": 2}}
QUEUES = {
    "volcano": {"annotations": {"scheduling.volcano.sh/queue-name": "serving"}},
    "kai": {"labels": {"kai.scheduler/queue": "serving"}},
}


def raw(kind: str, **scheduling: object) -> dict:
    return raw_spec(prefill=STAGED, scheduling={"gang": kind, **scheduling})


def data(made: dict) -> dict:
    return engine.render(made, schema.parse(made), OWNER, Settings())


@pytest.mark.parametrize("kind", ["volcano", "coscheduling", "kai"])
def test_golden(kind: str) -> None:
    asked = raw(kind, priorityClassName="high")
    asked["prefill"] = {**STAGED, "podTemplate": {"metadata": QUEUES.get(kind, {})}}
    rendered = data(asked)
    pods = [engine.pod(OWNER, rendered, "prefill", 0, 1, rank, 0) for rank in (0, 1)]
    kept = ("name", "labels", "annotations")
    shown = [gang.pod_group(OWNER, rendered, "prefill", "chat-p-0-1")]
    for pod in pods:
        metadata = {key: pod["metadata"][key] for key in kept}
        shown.append({"metadata": metadata, "schedulerName": pod["spec"]["schedulerName"]})
    text = yaml.safe_dump(json.loads(json.dumps(shown)), sort_keys=False)
    path = GOLDEN / f"gang-{kind}.yaml"
    if os.environ.get("PDS_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_no_gang_is_the_same_as_none_of_it() -> None:
    rendered = data(raw("none"))
    assert gang.of(rendered, "prefill") == ""
    pod = engine.pod(OWNER, rendered, "prefill", 0, 0, 0, 0)
    assert "schedulerName" not in pod["spec"]


def test_a_pod_that_stands_alone_is_no_gang() -> None:
    rendered = data(raw("volcano"))
    assert gang.of(rendered, "decode") == ""
    pod = engine.pod(OWNER, rendered, "decode", 0, 0, 0, 0)
    assert pod["spec"]["schedulerName"] == "volcano"


def test_the_schedulers_name_can_be_another() -> None:
    rendered = data(raw("coscheduling", schedulerName="mine"))
    assert engine.pod(OWNER, rendered, "prefill", 0, 0, 0, 0)["spec"]["schedulerName"] == "mine"


# ---- when ----------------------------------------------------------------------------------------


@pytest.fixture
def world() -> World:
    world = World(raw("volcano"))
    world.settle()
    return world


def prefill(world: World) -> list[str]:
    """What the next plan does to the prefill group: actions of its scope."""
    found = plan(world.observed(), desired(world.raw), world.now).actions
    return [
        str(action)
        for action in found
        if action.scope == "group/prefill/0" and isinstance(action, Create | Delete | Disband)
    ]


def test_the_pod_group_comes_before_its_pods() -> None:
    world = World(raw("volcano"))
    world.round()
    assert prefill(world) == [
        "create podgroup chat-p-0-0",
        "create pod chat-p-0-0-0",
        "create pod chat-p-0-0-1",
    ]


def test_an_attempt_has_its_own(world: World) -> None:
    world.fail("chat-p-0-0-1")
    assert prefill(world) == [
        "disband chat-p-0-0",
        "delete pod chat-p-0-0-0",
        "create podgroup chat-p-0-1",
        "create pod chat-p-0-1-0",
        "create pod chat-p-0-1-1",
    ]


def test_a_group_that_leaves_takes_it_along(world: World) -> None:
    world.raw = {**world.raw, "prefill": {**STAGED, "replicas": 0}}
    world.round()
    assert prefill(world) == [
        "disband chat-p-0-0",
        "delete pod chat-p-0-0-0",
        "delete pod chat-p-0-0-1",
    ]


def test_a_group_scheduled_in_part_for_too_long_is_deleted_whole_and_held_back() -> None:
    world = World(raw_spec(prefill=STAGED, scheduling={"scheduleTimeoutSeconds": 60}))
    world.unschedulable = True
    world.round()
    world.round()
    assert {"chat-p-0-0-0", "chat-p-0-0-1"} <= set(world.pods)
    world.change("chat-p-0-0-0", scheduled=True)
    world.change("chat-p-0-0-1", unscheduled="0/3 nodes are available")
    world.now = NOW + 59
    assert prefill(world) == []
    world.now = NOW + 60
    decided = plan(world.observed(), desired(world.raw), world.now)
    actions = [str(action) for action in decided.actions]
    assert [text for text in actions if "waited" not in text][-5:] == [
        "drain chat-p-0-0-0",
        "drain chat-p-0-0-1",
        "delete pod chat-p-0-0-0",
        "delete pod chat-p-0-0-1",
        "hold schedule/prefill",
    ]
    assert any("0/3 nodes are available" in problem.message for problem in decided.problems)
    world.pods = {name: pod for name, pod in world.pods.items() if pod.role != "prefill"}
    held = ScopeFailure("Unschedulable", "in part", 1, world.now + 5)
    world.failures = {"schedule/prefill": held}
    assert prefill(world) == []
    world.now += 6
    assert prefill(world) == ["create pod chat-p-0-0-0", "create pod chat-p-0-0-1"]


# ---- carried out ---------------------------------------------------------------------------------


class GangBench:
    def __init__(self) -> None:
        self.api, self.backoff = FakeApi(), Backoff()
        self.executor = Executor(
            self.api, Store(lambda key: None), Prober(), lambda: True, lambda: NOW
        )

    async def do(self, *actions: Create | Disband | Hold) -> None:
        await self.executor.carry_out(actions, OWNER, self.backoff, b"")


MADE = Create(gang.pod_group(OWNER, data(raw("volcano")), "prefill", "chat-p-0-0"), "group")
GONE = Disband("scheduling.volcano.sh/v1beta1", "chat-p-0-0", "group")


async def test_made_twice_and_deleted_twice_is_the_same_as_once() -> None:
    bench = GangBench()
    await bench.do(MADE, MADE)
    assert bench.api.names("PodGroup") == ["chat-p-0-0"]
    await bench.do(GONE, GONE)
    assert bench.api.names("PodGroup") == []
    assert not bench.backoff.failures


async def test_a_wait_that_ran_out_holds_longer_each_time() -> None:
    bench = GangBench()
    hold = Hold("schedule/prefill", "Unschedulable", "in part")
    for count, seconds in ((1, 5), (2, 10), (3, 20)):
        await bench.do(hold)
        held = ScopeFailure("Unschedulable", "in part", count, NOW + seconds, NOW)
        assert bench.backoff.failures == {"schedule/prefill": held}
    bench.backoff.settle((), set(), NOW + 600)
    assert bench.backoff.failures
    bench.backoff.settle((), set(), NOW + 3600)
    assert not bench.backoff.failures


async def test_another_ones_pod_group_is_left_alone() -> None:
    bench = GangBench()
    await bench.do(MADE)
    other = {"kind": "Job", "name": "theirs", "uid": "uid-theirs", "controller": True}
    bench.api.one("PodGroup", "chat-p-0-0")["metadata"]["ownerReferences"] = [other]
    await bench.do(GONE)
    assert bench.api.names("PodGroup") == ["chat-p-0-0"]
    await bench.do(MADE)
    assert bench.backoff.failures["group"].reason == "NameTaken"


async def test_a_pod_group_that_was_left_behind_is_adopted_or_goes() -> None:
    bench = GangBench()
    parent = {"name": OWNER.name, "namespace": OWNER.namespace, "uid": OWNER.uid}
    bench.api.put({"kind": names.KIND, "metadata": parent})
    await bench.do(MADE)
    bench.api.one("PodGroup", "chat-p-0-0")["metadata"]["ownerReferences"] = []
    await bench.do(MADE)
    meta = bench.api.one("PodGroup", "chat-p-0-0")["metadata"]
    assert meta["ownerReferences"] == [OWNER.reference()]
    meta["ownerReferences"] = []
    await bench.do(GONE)
    assert bench.api.names("PodGroup") == []
    assert not bench.backoff.failures


async def test_a_cluster_without_the_kind_is_reported() -> None:
    bench = GangBench()
    bench.api.refuse = lambda verb, obj: errors.Missing(404, "NotFound", "no such kind")
    await bench.do(MADE)
    failure = bench.backoff.failures["group"]
    assert failure.reason == "GangUnknown"
    assert "scheduling.volcano.sh/v1beta1 PodGroup" in failure.message
