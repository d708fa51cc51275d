"""How a round is carried out: which writes go side by side, and what ends them."""

import asyncio
from typing import Any

import pytest
from fake_api import FakeApi
from pds_operator import errors, names
from pds_operator.decide.actions import Action, Create, Say
from pds_operator.render.owner import Owner
from pds_operator.run.cluster import Store
from pds_operator.run.execute import LANES, Backoff, Executor

OWNER = Owner("chat", "team", "uid-chat")


def pod(group: int, rank: int = 0) -> Create:
    meta = {
        "name": f"chat-p-{group}-0-{rank}",
        "namespace": "team",
        "labels": {names.NAME: "chat"},
        "ownerReferences": [{"uid": OWNER.uid, "controller": True}],
    }
    obj = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {}}
    return Create(obj, f"group/prefill/{group}")


class Slow(FakeApi):
    """Each call gives others their turn before it is answered."""

    def __init__(self) -> None:
        super().__init__()
        self.open = 0
        self.most = 0

    async def create(self, obj: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        self.open += 1
        self.most = max(self.most, self.open)
        for _ in range(3):
            await asyncio.sleep(0)
        self.open -= 1
        return await super().create(obj, dry_run=dry_run)


class ExecutorBench:
    def __init__(self) -> None:
        self.api, self.backoff, self.left = Slow(), Backoff(), 10_000
        self.executor = Executor(self.api, Store(lambda key: None), None, self._leads)  # type: ignore[arg-type]

    def _leads(self) -> bool:
        self.left -= 1
        return self.left >= 0

    async def do(self, *actions: Action) -> bool:
        return await self.executor.carry_out(actions, OWNER, self.backoff, b"")


async def test_pods_are_posted_side_by_side_and_no_more_than_so_many():
    bench = ExecutorBench()
    assert not await bench.do(*(pod(group) for group in range(100)))
    assert len(bench.api.names("Pod")) == 100
    assert bench.api.most == LANES


async def test_other_kinds_wait_for_each_other_and_for_the_pods_before_them():
    bench = ExecutorBench()
    service = {"kind": "Service", "metadata": {"name": "chat", "namespace": "team"}}
    last = {"kind": "ConfigMap", "metadata": {"name": "chat", "namespace": "team"}}
    await bench.do(Create(service, "service"), pod(0), Say("Made", "it"), Create(last, "map"))
    assert [call.split()[1] for call in bench.api.calls] == ["Service", "Pod", "Event", "ConfigMap"]
    assert bench.api.most == 2


async def test_a_refusal_ends_its_own_group_alone():
    bench = ExecutorBench()
    bench.api.refuse = lambda verb, obj: (
        errors.AdmissionDenied(403, "Forbidden", "exceeded quota")
        if obj["metadata"]["name"] == "chat-p-1-0-0"
        else None
    )
    await bench.do(*(pod(group, rank) for group in range(3) for rank in range(2)))
    assert bench.api.names("Pod") == [
        *("chat-p-0-0-0", "chat-p-0-0-1"),
        *("chat-p-2-0-0", "chat-p-2-0-1"),
    ]
    assert list(bench.backoff.failures) == ["group/prefill/1"]


async def test_a_lease_that_is_lost_ends_every_lane():
    bench = ExecutorBench()
    bench.left = 5
    with pytest.raises(errors.NotLeading):
        await bench.do(*(pod(group) for group in range(100)))
    assert len(bench.api.names("Pod")) == 5
    assert bench.api.open == 0
