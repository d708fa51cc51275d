"""Pods that wear our labels and are not ours, and PDServings that are not there any more."""

import pytest
from bench import KEY
from pds_operator.facts.observed import RouterView
from pds_operator.run import parents


@pytest.mark.parametrize("controller", ["nobody", "a set of nobody", "a set of others"])
async def test_a_router_of_strangers_is_not_asked_and_unroutes_nothing(bench, controller):
    made = None
    if controller != "nobody":
        made = bench.api.put_set("stranger", {"metadata": {"uid": "uid-of-others"}})
    if controller == "a set of nobody":
        del made["metadata"]["ownerReferences"]
        made = bench.api.put(made)
    bench.api.put_router("stranger", made, ip="10.6.6.6")
    asked = []

    async def views(routers):
        asked.append(list(routers))
        found = {
            name: RouterView(name, dict.fromkeys(bench.pods.leaders, True)) for name, _ in routers
        }
        if "stranger" in found:
            found["stranger"] = RouterView("stranger", dict.fromkeys(bench.pods.leaders, False))
        return list(found.values())

    bench.pods.views = views
    bench.now += 60
    assert (await bench.round())[1] == []
    assert asked == [[("chat-router-x", "10.0.1.1")]]
    assert bench.condition("Ready") == ("True", "Routable")


async def test_a_leader_of_strangers_is_not_asked(bench):
    own = bench.api.one("Pod", "chat-p-0-0-0")
    fake = {**own, "metadata": {**own["metadata"], "name": "chat-p-7-0-0", "uid": "another"}}
    theirs = {"apiVersion": "v1", "kind": "Node", "name": "theirs", "uid": "uid-theirs"}
    fake["metadata"]["ownerReferences"] = [{**theirs, "controller": True}]
    bench.api.put(fake)
    bench.now += 60
    assert (await bench.round())[1] == []
    assert "chat-p-7-0-0" not in bench.pods.leaders


def unheard(bench):
    """From now on kopf's watch reports nothing of the PDServing."""
    live = bench.api.objects.pop(("PDServing", "team", "chat"))
    return live


async def test_a_round_whose_status_is_refused_as_gone_ends_it(bench):
    unheard(bench)
    pod = bench.api.objects.pop(("Pod", "team", "chat-d-0-0-0"))  # garbage collection begins
    bench.reconciler.store.drop(pod)
    await bench.round()
    assert bench.reconciler.store.parent(KEY) is None
    _, calls = await bench.round()
    assert calls == []


async def test_one_that_was_made_anew_is_taken_up_with_nothing_of_its_predecessor(bench):
    live = unheard(bench)
    for kind, _, name in [place for place in bench.api.objects if place[0] != "PDServing"]:
        gone = bench.api.objects.pop((kind, "team", name))
        if kind not in ("Secret", "Event"):
            bench.reconciler.store.drop(gone)
    store, bench.api.store = bench.api.store, None
    del live["status"]
    bench.api.put({**live, "metadata": {**live["metadata"], "uid": "uid-anew"}})
    bench.api.store = store
    await bench.round()
    assert store.parent(KEY)["metadata"]["uid"] == "uid-anew"
    await bench.settle()
    owners = {
        obj["metadata"]["ownerReferences"][0]["uid"]
        for (kind, _, _), obj in bench.api.objects.items()
        if kind in ("Secret", "Deployment", "Service")
    }
    assert owners == {"uid-anew"}
    assert bench.condition("Ready") == ("True", "Routable")


class Lists:
    """An API server's lists of PDServings, between which kopf may report something."""

    def __init__(self, *found):
        self.found, self.meanwhile = list(found), lambda: None
        self.store = parents.Store(lambda key: None)

    async def list(self, kind, namespace, selector="", fields=""):
        assert kind == "PDServing"
        found = [item for item in self.found if namespace in (None, item["metadata"]["namespace"])]
        self.meanwhile()
        return found, "50"


def pds(name, version, uid=None, namespace="team"):
    meta = {"name": name, "namespace": namespace, "uid": uid or f"uid-{name}"}
    return {"metadata": {**meta, "resourceVersion": str(version), "generation": 1}, "spec": {}}


async def looked(api, *known, namespaces=()):
    changed = []
    api.store = parents.Store(changed.append)
    for item in known:
        api.store.put_parent(item)
    changed.clear()
    await parents.look(api, api.store, list(namespaces))
    return {uid for _, uid in api.store.parents()}, {name for _, name in changed}


async def test_a_list_finds_what_no_event_reported():
    api = Lists(pds("kept", 10), pds("new", 20), pds("changed", 30))
    known = pds("kept", 10), pds("gone", 11), pds("changed", 12)
    uids, changed = await looked(api, *known)
    assert uids == {"uid-kept", "uid-new", "uid-changed"}
    assert changed == {"gone", "new", "changed"}


async def test_a_list_of_one_namespace_says_nothing_of_others():
    known = pds("here", 10), pds("there", 10, namespace="other")
    uids, _ = await looked(Lists(), *known, namespaces=["team"])
    assert uids == {"uid-there"}


async def test_what_kopf_reported_while_the_list_was_on_its_way_stands():
    api = Lists(pds("deleted", 10), pds("anew", 11, uid="uid-old"))

    def meanwhile():
        store = api.store
        store.drop_parent(("team", "deleted"), "uid-deleted")
        store.put_parent(pds("made", 60))
        store.drop_parent(("team", "anew"), "uid-old")
        store.put_parent(pds("anew", 61, uid="uid-new"))

    api.meanwhile = meanwhile
    uids, _ = await looked(api, pds("deleted", 10), pds("anew", 11, uid="uid-old"))
    assert uids == {"uid-made", "uid-new"}


async def test_an_old_event_of_a_predecessor_changes_nothing():
    store = parents.Store(lambda key: None)
    store.put_parent(pds("chat", 20, uid="uid-new"))
    store.put_parent(pds("chat", 19, uid="uid-old"))
    store.drop_parent(("team", "chat"), "uid-old")
    assert {uid for _, uid in store.parents()} == {"uid-new"}
