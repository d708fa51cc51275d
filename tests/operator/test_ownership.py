"""Whose the objects are: a predecessor of the same name, orphans, strangers."""

import copy

import pytest
from pds_operator import errors, names
from pds_operator.decide.ownership import Whose, whose
from pds_operator.render.owner import Owner

OWNER = Owner("chat", "team", "uid-chat")
MADE = {names.MANAGED_BY: names.MANAGER, names.NAME: "chat"}
OTHER = {"apiVersion": "pdserving.io/v1alpha1", "kind": "PDServing", "uid": "uid-other"}


def kept(bench, *kinds):
    """(kind, name, uid) of what there is, but for what is new in every life."""
    return {
        (kind, name, obj["metadata"]["uid"])
        for (kind, _, name), obj in bench.api.objects.items()
        if kind != "PDServing" and (kind in kinds or not kinds)
    }


@pytest.mark.parametrize(
    ("kind", "labels", "owner", "expected"),
    [
        ("Service", MADE, OWNER.reference(), Whose.OURS),
        ("Service", {}, OWNER.reference(), Whose.OURS),
        ("Service", MADE, None, Whose.ORPHAN),
        ("Service", {names.NAME: "chat"}, None, Whose.STRANGER),
        ("Service", {**MADE, names.NAME: "other"}, None, Whose.STRANGER),
        ("Service", MADE, {**OTHER, "name": "chat"}, Whose.PREDECESSOR),
        ("Service", MADE, {**OTHER, "name": "chat-ranks"}, Whose.STRANGER),
        ("Service", MADE, {**OTHER, "apiVersion": "v1", "name": "chat"}, Whose.STRANGER),
        ("PersistentVolumeClaim", MADE, None, Whose.OURS),
        ("PersistentVolumeClaim", {}, None, Whose.STRANGER),
        ("PersistentVolumeClaim", MADE, {**OTHER, "name": "chat"}, Whose.PREDECESSOR),
    ],
)
def test_whose(kind, labels, owner, expected):
    references = [{**owner, "controller": True}] if owner else []
    meta = {"name": "x", "uid": "u", "labels": labels, "ownerReferences": references}
    assert whose({"kind": kind, "metadata": meta}, OWNER) is expected


# ---- a predecessor -------------------------------------------------------------------------------


async def for_minutes_refused(bench, policy):
    """Somebody's policy refuses these patches, and rounds go by; what is to be restored after."""
    merge = bench.api.merge

    async def refused(kind, namespace, name, patch, subresource=""):
        if policy(kind, name, patch):
            raise errors.from_status(403, {"message": "a policy says no"})
        return await merge(kind, namespace, name, patch, subresource)

    bench.api.merge = refused
    for _ in range(6):
        bench.now += 60
        await bench.round()
    return merge


async def test_deleted_and_applied_at_once(bench):
    """Nothing of the predecessor is counted, and what it leaves is waited for by name."""
    old = bench.begin_anew("uid-next")
    going = bench.api.owned(old)
    untouched = copy.deepcopy(going)
    wait, calls = await bench.round()
    assert [call for call in calls if not call.endswith("chat") and "Event" not in call] == []
    assert bench.condition("Degraded") == ("True", "PredecessorLeaving")
    assert "Service chat" in bench.message("Degraded")
    assert bench.condition("Ready") == ("False", "NoRouter")
    assert bench.status["currentRevision"] == ""
    assert wait <= 2
    assert bench.api.owned(old) == untouched
    uids = {obj["metadata"]["uid"] for obj in going}
    for obj in going:
        bench.api.remove(obj)
        await bench.round()
        bench.run_pods()
    await bench.settle()
    assert bench.condition("Ready") == ("True", "Routable")
    assert bench.condition("Degraded") == ("False", "AsExpected")
    assert not uids & {uid for _, _, uid in kept(bench)}


@pytest.mark.parametrize("last", ["Secret", "Deployment", "Pod", "ControllerRevision", "Service"])
async def test_a_predecessor_may_go_in_any_order(bench, last):
    old = bench.begin_anew("uid-next")
    for obj in sorted(bench.api.owned(old), key=lambda obj: obj["kind"] == last):
        await bench.round()
        bench.run_pods()
        bench.api.remove(obj)
    await bench.settle()
    assert bench.condition("Ready") == ("True", "Routable")
    secret = bench.api.one("Secret", "chat-control")["metadata"]
    assert secret["ownerReferences"][0]["uid"] == "uid-next"


async def test_no_keys_are_made_beside_a_pod_that_has_a_predecessors(bench):
    """A node keeps an immutable Secret by its name while a pod of it uses that."""
    old = bench.begin_anew("uid-next")
    router = bench.api.one("Pod", "chat-router-x")
    for obj in bench.api.owned(old):
        if obj["metadata"]["uid"] != router["metadata"]["uid"]:
            bench.api.remove(obj)
    await bench.round()
    await bench.round()
    assert {kind for kind, _, _ in kept(bench)}.isdisjoint({"Secret", "Deployment"})
    assert bench.api.names("Pod") == ["chat-router-x"]
    assert bench.condition("Degraded") == ("True", "PredecessorLeaving")
    assert "kubectl delete pod chat-router-x --force" in bench.message("Degraded")
    bench.api.remove(router)
    await bench.settle()
    assert bench.condition("Ready") == ("True", "Routable")


async def test_a_router_deployment_that_somebody_deletes_is_made_again_at_once(bench):
    """Its pods are still there, and the keys are ours."""
    bench.api.remove(bench.api.one("Deployment", "chat-router"))
    _, calls = await bench.round()
    assert "create Deployment chat-router" in calls


async def test_what_goes_wakes_the_round(bench):
    old = bench.begin_anew("uid-next")
    await bench.round()
    memory = bench.reconciler._memories["team", "chat"]
    memory.dirty.clear()
    bench.api.remove(next(o for o in bench.api.owned(old) if o["kind"] == "NetworkPolicy"))
    assert memory.dirty.is_set()


async def test_a_lost_secret_is_a_rotation_and_no_predecessors(bench):
    bench.api.remove(bench.api.one("Secret", "chat-control"))
    bench.now += 6
    await bench.settle()
    bench.now += 60
    await bench.settle()
    active = bench.api.one("Secret", "chat-keyring")["metadata"]["annotations"][names.ACTIVE]
    assert sorted(bench.api.names("Secret")) == ["chat-cache-key", active, "chat-keyring"]
    assert bench.condition("Degraded") == ("False", "AsExpected")
    assert bench.condition("Ready") == ("True", "Routable")


async def rotated(bench):
    """Keys of later generations: the Secret of the first is gone; that of the active one."""
    parent = bench.api.one("PDServing", "chat")
    parent["metadata"].setdefault("annotations", {})[names.ROTATE] = "now"
    bench.api.put(parent)
    for _ in range(4):
        bench.now += 60
        await bench.settle()
    assert "chat-control" not in bench.api.names("Secret")
    return bench.api.one("Secret", "chat-keyring")["metadata"]["annotations"][names.ACTIVE]


@pytest.mark.parametrize("kind", ["Secret", "Pod"])
async def test_nothing_of_a_predecessors_rotated_keys_is_believed(bench, kind):
    """Neither its ring, nor its active key, nor what was read of them before."""
    active = await rotated(bench)
    old = bench.begin_anew("uid-next")
    for obj in sorted(bench.api.owned(old), key=lambda obj: obj["kind"] == kind):
        await bench.round()
        bench.run_pods()
        made = [name for k, name, _ in kept(bench) if k == "Secret" and "control" in name]
        assert set(made) <= {active, "chat-control"}
        bench.api.remove(obj)
    await bench.settle()
    assert sorted(bench.api.names("Secret")) == ["chat-cache-key", "chat-control", "chat-keyring"]
    notes = bench.api.one("Secret", "chat-keyring")["metadata"]["annotations"]
    assert notes[names.ACTIVE] == "chat-control"
    assert bench.condition("Ready") == ("True", "Routable")
    [key] = {bench.pods.keys[pod] for pod in bench.pods.leaders}
    assert len(key) == 32


async def test_a_predecessors_cache_key_is_waited_out(bench):
    """What mounted it beside the one that comes would take all others' artefacts for bad ones."""
    old = bench.begin_anew("uid-next")
    for obj in bench.api.owned(old):
        if obj["metadata"]["name"] != "chat-cache-key":
            bench.api.remove(obj)
    for _ in range(3):
        wait, _ = await bench.round()
    assert bench.api.names("Pod") == bench.api.names("Deployment") == []
    assert bench.condition("Degraded") == ("True", "PredecessorLeaving")
    assert "Secret chat-cache-key" in bench.message("Degraded")
    assert wait <= 2
    bench.api.remove(bench.api.one("Secret", "chat-cache-key"))
    await bench.settle()
    assert bench.condition("Ready") == ("True", "Routable")


# ---- orphans -------------------------------------------------------------------------------------


async def test_what_was_left_behind_is_adopted_and_goes_on_serving(bench):
    """`kubectl delete --cascade=orphan`, and applied again."""
    before = kept(bench)
    bench.api.orphan(bench.begin_anew("uid-next"))
    _, calls = await bench.round()
    made = [call for call in calls if call.startswith(("create", "delete")) and "Event" not in call]
    assert made == []
    await bench.settle()
    assert kept(bench) == before
    assert bench.condition("Ready") == ("True", "Routable")
    assert bench.condition("Degraded") == ("False", "AsExpected")
    assert bench.status["prefill"]["summary"] == "2/2"
    for obj in bench.api.objects.values():
        managed = obj["metadata"].get("labels", {}).get(names.MANAGED_BY) == names.MANAGER
        if managed and obj["kind"] != "EndpointSlice":
            [owner] = obj["metadata"]["ownerReferences"]
            assert owner == Owner("chat", "team", "uid-next").reference()
    _, calls = await bench.round()
    assert calls == []


async def test_keys_of_later_generations_are_adopted_with_all_else(bench):
    """Nothing is rotated or restarted for it, and what the keys are is known at once."""
    active = await rotated(bench)
    before = kept(bench)
    known = dict(bench.pods.keys)
    bench.api.orphan(bench.begin_anew("uid-next"))
    for _ in range(3):
        bench.now += 10
        await bench.settle()
    assert kept(bench) == before
    for name in (active, "chat-keyring", "chat-cache-key"):
        [owner] = bench.api.one("Secret", name)["metadata"]["ownerReferences"]
        assert owner["uid"] == "uid-next"
    assert {pod: bench.pods.keys[pod] for pod in bench.pods.leaders} == {
        pod: known[pod] for pod in bench.pods.leaders
    }
    assert bench.condition("Ready") == ("True", "Routable")
    assert bench.condition("Degraded") == ("False", "AsExpected")


async def test_a_secret_that_is_restored_without_its_owner_is_adopted(bench):
    """Restored from a backup before anybody missed it: the key is what it was."""
    secret = bench.api.one("Secret", "chat-control")
    before = kept(bench, "Pod")
    bench.api.remove(secret)
    bench.api.put({**secret, "metadata": {**secret["metadata"], "ownerReferences": []}})
    bench.now += 6
    await bench.settle()
    [owner] = bench.api.one("Secret", "chat-control")["metadata"]["ownerReferences"]
    assert owner["uid"] == "uid-chat"
    assert kept(bench, "Pod") == before


async def test_a_secret_that_cannot_be_adopted_is_not_lost(bench):
    """Its groups go on, and nothing is made that mounts it."""
    secret = bench.api.one("Secret", "chat-control")
    bench.api.put({**secret, "metadata": {**secret["metadata"], "ownerReferences": []}})
    before = kept(bench, "Pod", "Secret")
    merge = await for_minutes_refused(bench, lambda kind, name, patch: kind == "Secret")
    bench.ask(decode={"replicas": 2})
    for _ in range(3):
        await bench.round()
        bench.run_pods()
    assert kept(bench, "Pod", "Secret") == before
    assert bench.condition("Degraded") == ("True", "Forbidden")
    bench.api.merge = merge
    bench.now += 300
    await bench.settle()
    assert len(bench.api.names("Pod")) == len([p for p in before if p[0] == "Pod"]) + 1


async def test_orphans_of_another_spec_are_rolled_over(bench):
    """Adopted with their revision, they serve until the new one does."""
    old = bench.begin_anew("uid-next")
    bench.api.orphan(old)
    bench.ask(image="engine:2")
    await bench.round()
    await bench.round()
    revisions = [
        bench.api.one("ControllerRevision", n) for n in bench.api.names("ControllerRevision")
    ]
    assert sorted(obj["revision"] for obj in revisions) == [1, 2]
    assert bench.condition("Ready") == ("True", "Routable")
    assert {"chat-p-0-0-0", "chat-p-1-0-0", "chat-d-0-0-0"} <= set(bench.api.names("Pod"))


async def test_strangers_are_never_adopted(bench):
    others = bench.api.one("ConfigMap", "chat-router")
    others["metadata"]["ownerReferences"] = [{**OTHER, "name": "x", "controller": True}]
    bench.api.put(others)
    unlabelled = bench.api.one("Service", "chat")
    del unlabelled["metadata"]["labels"][names.MANAGED_BY]
    unlabelled["metadata"]["ownerReferences"] = []
    bench.api.put(unlabelled)
    router = bench.api.one("Pod", "chat-router-x")
    router["metadata"]["ownerReferences"] = []
    router["metadata"]["labels"] |= MADE
    bench.api.put(router)
    before = copy.deepcopy([others, unlabelled, router])
    for _ in range(3):
        await bench.round()
    assert bench.condition("Degraded") == ("True", "NameTaken")
    for obj in before:
        found = bench.api.one(obj["kind"], obj["metadata"]["name"])
        assert found["metadata"]["ownerReferences"] == obj["metadata"]["ownerReferences"]


async def test_a_pdserving_that_is_being_deleted_adopts_nothing(bench):
    """We may not have heard of it yet: the API server is asked."""
    bench.api.orphan("uid-chat")
    parent = bench.api.one("PDServing", "chat")
    parent["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"  # no event reports it
    _, calls = await bench.round()
    assert calls == []


async def test_what_cannot_be_adopted_is_reported_and_the_rest_goes_on(bench):
    bench.api.orphan(bench.begin_anew("uid-next"))
    adopts = ("Service", "chat")
    merge = await for_minutes_refused(
        bench,
        lambda kind, name, patch: (kind, name) == adopts and "ownerReferences" in patch["metadata"],
    )
    assert bench.condition("Degraded") == ("True", "Forbidden")
    assert "adopt service chat: a policy says no" in bench.message("Degraded")
    assert bench.status["prefill"]["summary"] == "2/2"
    bench.api.merge = merge
    bench.now += 300
    await bench.settle()
    assert bench.condition("Degraded") == ("False", "AsExpected")


async def test_a_strangers_pods_count_for_nothing(bench):
    """An engine's name, a router's labels, and not ours."""
    pod = copy.deepcopy(bench.api.one("Pod", "chat-p-1-0-0"))
    pod["metadata"] |= {"name": "chat-p-7-0-0", "uid": "uid-7", "ownerReferences": []}
    del pod["metadata"]["labels"][names.MANAGED_BY]
    router = copy.deepcopy(bench.api.one("Pod", "chat-router-x"))
    router["metadata"] |= {"name": "mine", "uid": "uid-mine", "ownerReferences": []}
    bench.api.put(pod)
    bench.api.put(router)
    _, calls = await bench.round()
    assert calls == []
    observed = await bench.reconciler._observer.look(
        ("team", "chat"), OWNER, bench.reconciler._memories["team", "chat"]
    )
    assert observed.routers_ready == 1
    assert "chat-p-7-0-0" not in {pod.name for pod in observed.pods}
