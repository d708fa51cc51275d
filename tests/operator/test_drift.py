"""What others change in objects of ours is whole again within a round, or reported."""

import copy

import pytest
from pds_operator import names

ROUTER = names.router("chat")


def strip(bench, kind, name):
    """Somebody takes the labels away: a watch with a selector says that it is gone."""
    obj = bench.api.one(kind, name)
    bench.reconciler.store.drop(obj)
    obj["metadata"]["labels"] = {"kept": "by somebody"}
    return obj["metadata"]["uid"]


async def test_labels_that_somebody_took_away_are_restored(bench):
    uid = strip(bench, "Pod", "chat-d-0-0-0")
    service = strip(bench, "Service", "chat")
    await bench.settle()
    pod = bench.api.one("Pod", "chat-d-0-0-0")["metadata"]
    assert pod["uid"] == uid
    assert pod["labels"]["pdserving.io/role"] == "decode"
    assert pod["labels"]["kept"] == "by somebody"
    assert bench.api.one("Service", "chat")["metadata"]["uid"] == service
    assert bench.condition("Degraded") == ("False", "AsExpected")
    assert bench.status["decode"]["summary"] == "1/1"


@pytest.mark.parametrize("manager", ["kubectl-edit", names.MANAGER])
async def test_a_port_that_somebody_renumbers_is_restored(bench, manager):
    """By its number it is another port, and ours beside it would have the same name."""
    service, deployment = bench.api.one("Service", "chat"), bench.api.one("Deployment", ROUTER)
    ports = [{**service["spec"]["ports"][0], "port": 9999, "targetPort": 1}]
    bench.api.edit("Service", "chat", {"spec": {"ports": ports}}, manager)
    template = copy.deepcopy(deployment["spec"]["template"])
    template["spec"]["containers"][0]["ports"][0]["containerPort"] = 8765
    template["spec"]["nodeSelector"] = {"disk": "none"}
    bench.api.edit("Deployment", ROUTER, {"spec": {"template": template}}, manager)
    await bench.settle()
    assert bench.api.one("Service", "chat")["spec"] == service["spec"]
    assert bench.api.one("Deployment", ROUTER)["spec"] == deployment["spec"]
    assert bench.condition("Degraded") == ("False", "AsExpected")


async def test_the_revision_that_served_is_found_again_by_what_runs_of_it(bench):
    name = next(name for kind, _, name in bench.api.objects if kind == "ControllerRevision")
    uid = strip(bench, "ControllerRevision", name)
    bench.parent["spec"] |= {"image": "engine:2", "rollout": {"paused": True}}
    bench.parent["metadata"]["generation"] = 2
    bench.api.put(bench.parent)
    _, calls = await bench.round()
    assert f"patch ControllerRevision {name}" in calls
    assert bench.api.one("ControllerRevision", name)["metadata"]["uid"] == uid
    await bench.settle()
    image = bench.api.one("Pod", "chat-d-0-0-0")["spec"]["containers"][0].get("image")
    assert image != "engine:2"


async def test_a_revision_that_somebody_deleted_is_reported(bench):
    [name] = [name for kind, _, name in bench.api.objects if kind == "ControllerRevision"]
    live = bench.api.one("ControllerRevision", name)
    bench.api.objects = {key: obj for key, obj in bench.api.objects.items() if obj is not live}
    bench.reconciler.store.drop(live)
    bench.parent["spec"] |= {"image": "engine:2", "rollout": {"paused": True}}
    bench.parent["metadata"]["generation"] = 2
    bench.api.put(bench.parent)
    for _ in range(2):
        await bench.round()
    assert bench.condition("Degraded") == ("True", "RevisionMissing")


async def test_a_pod_that_lost_its_labels_and_is_of_another_revision_goes_on_serving(bench):
    """Its name and its volumes say what it is: it is drained in its turn, as any other."""
    before = dict(bench.api.one("Pod", "chat-d-0-0-0")["metadata"]["labels"])
    uid = strip(bench, "Pod", "chat-d-0-0-0")
    bench.parent["spec"]["image"] = "engine:2"
    bench.parent["metadata"]["generation"] = 2
    bench.api.put(bench.parent)
    await bench.settle()
    found = bench.api.one("Pod", "chat-d-0-0-0")["metadata"]
    assert (found["uid"], found["labels"]["kept"]) == (uid, "by somebody")
    named = ("role", "group", "attempt", "rank-pod", "revision", "name")
    for key in (f"pdserving.io/{name}" for name in named):
        assert found["labels"][key] == before[key]
    new = bench.api.one("Pod", "chat-d-1-0-0")
    assert new["spec"]["containers"][0]["image"] == "engine:2"


@pytest.mark.parametrize(
    ("kind", "name", "patch"),
    [
        ("Service", "chat", {"spec": {"selector": {"stranger": "yes"}}}),
        ("Service", "chat-ranks", {"spec": {"selector": {"pdserving.io/name": "other"}}}),
        ("Service", "chat", {"spec": {"ports": [{"name": "x", "port": 81, "protocol": "TCP"}]}}),
        ("Deployment", "chat-router", {"spec": {"strategy": {"type": "Recreate"}}}),
        (
            "Deployment",
            "chat-router",
            {"spec": {"template": {"metadata": {"labels": {"pdserving.io/role": "x", "y": "z"}}}}},
        ),
        (
            "Deployment",
            "chat-router",
            {"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}},
        ),
        ("PodDisruptionBudget", "chat-decode", {"spec": {"selector": {"matchLabels": {"a": "b"}}}}),
        ("PodDisruptionBudget", "chat-decode", {"spec": {"maxUnavailable": 1}}),
        ("NetworkPolicy", "chat-engine", {"spec": {"egress": [], "policyTypes": ["Egress"]}}),
        ("NetworkPolicy", "chat-engine", {"spec": {"egress": [{"ports": [{"port": 1}]}]}}),
        ("RoleBinding", "chat-router", {"subjects": [{"kind": "User", "name": "eve"}]}),
        ("ConfigMap", "chat-router", {"data": {"more.json": "{}"}}),
        ("ConfigMap", "chat-router", {"data": {"router.json": "{}"}}),
        ("ServiceAccount", "chat-router", {"automountServiceAccountToken": True}),
    ],
)
async def test_an_edit_is_restored_within_a_round(bench, kind, name, patch):
    before = bench.api.one(kind, name)
    wanted = {key: before[key] for key in before if key not in ("metadata", "status")}
    bench.api.edit(kind, name, patch)
    await bench.round()
    after = bench.api.one(kind, name)
    assert {key: after[key] for key in wanted} == wanted
    _, calls = await bench.round()
    reported = {"patch PDServing chat", "create Event Complete"} if kind == "Deployment" else set()
    assert set(calls) <= reported
    assert (await bench.round())[1] == []
    assert bench.condition("Degraded") == ("False", "AsExpected")


async def test_what_others_own_beside_ours_is_taken_away_too(bench):
    """A sidecar, and a variable of ours: an apply alone would leave them."""
    container = {"name": "router", "env": [{"name": "HTTP_PROXY", "value": "x"}]}
    live = bench.api.one("Deployment", "chat-router")
    [ours] = live["spec"]["template"]["spec"]["containers"]
    both = [{**ours, "env": [*ours["env"], *container["env"]]}, {"name": "spy", "image": "spy"}]
    template = {"spec": {"containers": both}}
    bench.api.edit("Deployment", "chat-router", {"spec": {"template": template}})
    _, calls = await bench.round()
    assert calls[:2] == ["apply Deployment chat-router", "patch Deployment chat-router"]
    assert bench.condition("Progressing") == ("True", "RollingOut")
    found = bench.api.one("Deployment", "chat-router")["spec"]["template"]["spec"]["containers"]
    assert found == [ours]
    _, calls = await bench.round()
    assert calls == ["patch PDServing chat", "create Event Complete"]
    assert (await bench.round())[1] == []


LABELS = [
    {"pdserving.io/group": "7"},
    {"pdserving.io/attempt": "x"},
    {"pdserving.io/rank-pod": None},
    {"pdserving.io/role": "prefill"},
    {"pdserving.io/role": "router"},
    {"pdserving.io/revision": "another"},
]


@pytest.mark.parametrize("labels", LABELS, ids=lambda labels: "=".join(map(str, *labels.items())))
async def test_a_pod_that_somebody_relabels_is_what_it_was(bench, labels):
    before = bench.api.one("Pod", "chat-d-0-0-0")["metadata"]
    bench.api.edit("Pod", "chat-d-0-0-0", {"metadata": {"labels": labels}})
    _, calls = await bench.round()
    assert calls == ["patch Pod chat-d-0-0-0"]
    after = bench.api.one("Pod", "chat-d-0-0-0")["metadata"]
    assert (after["uid"], after["labels"]) == (before["uid"], before["labels"])
    assert bench.status["decode"]["summary"] == "1/1"
    _, calls = await bench.round()
    assert calls == []


async def test_a_pod_that_is_given_to_another_name_is_found_and_put_back(bench):
    """Our watch selects any name, so that it reports a change: what a POST finds is mended."""
    pod = bench.api.one("Pod", "chat-d-0-0-0")
    uid = pod["metadata"]["uid"]
    bench.api.edit("Pod", "chat-d-0-0-0", {"metadata": {"labels": {"pdserving.io/name": "other"}}})
    for _ in range(3):
        await bench.round()
        bench.run_pods()
    pod = bench.api.one("Pod", "chat-d-0-0-0")["metadata"]
    assert (pod["uid"], pod["labels"]["pdserving.io/name"]) == (uid, "chat")
    assert bench.status["decode"]["summary"] == "1/1"
    _, calls = await bench.round()
    assert calls == []


async def test_labels_that_do_not_stay_are_reported(bench):
    """And not posted for again and again."""

    def policy(obj):
        if obj["kind"] == "Pod":
            obj["metadata"]["labels"]["pdserving.io/group"] = "7"

    bench.api.webhook = policy
    bench.api.edit("Pod", "chat-d-0-0-0", {"metadata": {"labels": {"pdserving.io/group": "7"}}})
    written = 0
    for _ in range(30):
        bench.now += 9
        written += sum("Pod" in call for call in (await bench.round())[1])
    assert bench.condition("Degraded") == ("True", "FieldContested")
    assert "Pod chat-d-0-0-0: metadata.labels" in bench.message("Degraded")
    assert written <= 6
    assert bench.status["decode"]["summary"] == "1/1"
    bench.api.webhook = lambda obj: None
    bench.now += 300
    await bench.settle()
    assert bench.condition("Degraded") == ("False", "AsExpected")


@pytest.mark.parametrize("said", ["chat-lie", "", None])
async def test_an_edited_current_revision_is_put_right(bench, said):
    right = bench.status["currentRevision"]
    parent = bench.api.one("PDServing", "chat")
    parent["status"]["currentRevision"] = said
    bench.api.put(parent)
    await bench.round()
    assert bench.status["currentRevision"] == right


async def test_an_edited_current_revision_is_put_right_amid_a_rollout(bench):
    right = bench.status["currentRevision"]
    bench.now += 60
    bench.ask(image="engine:2", rollout={"paused": True})
    for _ in range(3):
        await bench.round()
    parent = bench.api.one("PDServing", "chat")
    parent["status"]["currentRevision"] = "chat-lie"
    bench.api.put(parent)
    await bench.round()
    assert bench.status["currentRevision"] == right != bench.status["targetRevision"]


async def test_ready_is_that_the_service_reaches_a_router(bench):
    """And ends by its cure, which the message names: the Service is deleted."""
    bench.api.put(bench.api.slice_of("chat", []))
    await bench.round()
    assert bench.condition("Ready") == ("False", "NoEndpoint")
    assert "kubectl delete service chat" in bench.message("Ready")
    bench.api.put(bench.api.slice_of("chat", ["a-stranger"]))
    await bench.round()
    assert bench.condition("Ready") == ("False", "NoEndpoint")
    bench.api.remove(bench.api.one("Service", "chat"))
    await bench.settle()
    assert bench.condition("Ready") == ("True", "Routable")


async def test_the_slice_of_another_service_of_that_name_says_nothing(bench):
    other = bench.api.slice_of("chat", ["chat-router-x"])
    other["metadata"]["ownerReferences"][0]["uid"] = "uid-of-one-before"
    bench.api.put(other)
    await bench.round()
    assert bench.condition("Ready") == ("False", "NoEndpoint")
