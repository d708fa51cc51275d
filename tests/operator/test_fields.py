"""Fields have owners: what is no longer asked for goes, and a round at rest writes nothing."""

import copy

import field_owners
import pytest
from bench import Bench
from pds_operator import names
from pds_operator.facts import fields
from worlds import raw_spec

KINDS = ("Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy", "RoleBinding",
         "ServiceAccount", "ConfigMap")  # fmt: skip
SIDE = {"name": "side", "image": "side:1"}
FULL = {
    "service": {"port": 8000, "annotations": {"cloud/internal": "true"}},
    "auth": {"secretName": "keys"},
    "podTemplate": {
        "spec": {
            "nodeSelector": {"disk": "ssd"},
            "containers": [SIDE, {"name": "router", "env": [{"name": "DEBUG", "value": "1"}]}],
        }
    },
}


async def settled(router=None):
    bench = Bench(raw_spec(router=router or {}))
    await bench.settle()
    return bench


def posted(obj):
    """As the release before left it: POSTed, applied beside that, its fields never moved."""
    entries = obj["metadata"]["managedFields"]
    for entry in entries:
        if entry["manager"] == names.MANAGER:
            entry["operation"] = "Update"
    return obj


def parts(bench):
    deployment = bench.api.one("Deployment", "chat-router")["spec"]["template"]["spec"]
    service = bench.api.one("Service", "chat")
    router = next(c for c in deployment["containers"] if c["name"] == "router")
    return {
        "annotations": sorted(service["metadata"]["annotations"]),
        "ports": [(port["name"], port["port"]) for port in service["spec"]["ports"]],
        "nodeSelector": deployment.get("nodeSelector"),
        "containers": sorted(each["name"] for each in deployment["containers"]),
        "volumes": sorted(each["name"] for each in deployment["volumes"]),
        "mounts": sorted(each["name"] for each in router["volumeMounts"]),
        "env": sorted(each["name"] for each in router["env"]),
    }


async def rests(bench):
    for _ in range(5):
        _, calls = await bench.round()
        assert calls == []


@pytest.mark.parametrize("before", [False, True], ids=["made now", "made by the release before"])
async def test_what_is_taken_out_of_the_spec_goes(before):
    plain, bench = parts(await settled()), await settled(FULL)
    assert parts(bench)["env"] == ["DEBUG", "HOME"]
    if before:
        for obj in list(bench.api.objects.values()):
            if obj["kind"] in KINDS:
                bench.api.put(posted(copy.deepcopy(obj)))
    bench.ask(router={"service": {"port": 80}})
    await bench.settle()
    assert parts(bench) == {**plain, "ports": [("http", 80)]}
    assert bench.condition("Degraded") == ("False", "AsExpected")
    await rests(bench)


@pytest.mark.parametrize("field", ["service", "auth", "podTemplate"])
async def test_each_of_them_alone(field):
    bench = await settled(FULL)
    bench.ask(router={key: value for key, value in FULL.items() if key != field})
    await bench.settle()
    fresh = await settled({key: value for key, value in FULL.items() if key != field})
    assert parts(bench) == parts(fresh)
    await rests(bench)


async def test_what_was_left_standing_by_the_release_before_is_taken_away_once():
    """It took the annotation out of what it applied, and the POST's field stayed."""
    bench = await settled()
    service = bench.api.one("Service", "chat")
    service["metadata"]["annotations"]["left"] = "over"
    made = field_owners.created(service, names.MANAGER)
    bench.api.put(made)
    _, calls = await bench.round()
    assert calls == ["patch Service chat", "apply Service chat"]
    assert "left" not in bench.api.one("Service", "chat")["metadata"]["annotations"]
    await rests(bench)


async def test_our_fields_are_of_an_apply_from_the_first():
    bench = await settled(FULL)
    for kind in KINDS:
        for name in bench.api.names(kind):
            obj = bench.api.one(kind, name)
            if not obj.get("immutable"):
                assert not fields.unmoved(obj), (kind, name)
                assert field_owners.owned(obj, names.MANAGER, "Apply")


async def test_a_crash_between_post_and_move_or_move_and_apply_is_made_good():
    bench = await settled(FULL)
    obj = posted(copy.deepcopy(bench.api.one("Service", "chat")))
    obj["metadata"]["annotations"]["stale"] = "yes"
    obj = field_owners.created(obj, names.MANAGER)
    bench.api.put(obj)
    apply = bench.api.apply

    async def crash(obj):
        raise TimeoutError

    bench.api.apply = crash
    await bench.round()
    assert not fields.unmoved(bench.api.one("Service", "chat"))
    bench.api.apply = apply
    bench.now += 60
    await bench.settle()
    assert "stale" not in bench.api.one("Service", "chat")["metadata"]["annotations"]


async def test_another_writer_beside_us_only_puts_off_the_move():
    """The Deployment's controller writes as soon as it is made."""
    bench = Bench()
    merge, races = bench.api.merge, []

    async def race(kind, namespace, name, patch, subresource=""):
        if kind == "Deployment" and not races:
            races.append(name)
            bench.api.edit(kind, name, {"metadata": {"annotations": {"rev": "1"}}}, "controller")
        return await merge(kind, namespace, name, patch, subresource)

    bench.api.merge = race
    await bench.settle()
    deployment = bench.api.one("Deployment", "chat-router")
    assert races == ["chat-router"]
    assert not fields.unmoved(deployment)
    assert deployment["metadata"]["annotations"]["rev"] == "1"


async def test_replicas_that_others_rule_stay_theirs():
    bench = await settled()
    bench.api.edit("Deployment", "chat-router", {"spec": {"replicas": 5}}, "autoscaler")
    bench.ask(router={"service": {"port": 80}, "auth": {"secretName": "keys"}})
    await bench.settle()
    assert bench.api.one("Deployment", "chat-router")["spec"]["replicas"] == 5


@pytest.mark.parametrize("before", [False, True], ids=["made now", "made by the release before"])
async def test_replicas_that_are_taken_out_of_the_spec_stay_as_they_are(before):
    """Whoever is to scale from now on has not begun yet."""
    bench = await settled({"replicas": 3})
    if before:
        bench.api.put(posted(copy.deepcopy(bench.api.one("Deployment", "chat-router"))))
    bench.ask(router={})
    await bench.settle()
    deployment = bench.api.one("Deployment", "chat-router")
    assert deployment["spec"]["replicas"] == 3
    assert not fields.owns(deployment, ("f:spec", "f:replicas"))
    bench.ask(router={"replicas": 2})
    await bench.settle()
    assert bench.api.one("Deployment", "chat-router")["spec"]["replicas"] == 2


async def test_labels_and_annotations_of_others_stay():
    bench = await settled()
    template = {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "now"}}}
    patch = {"metadata": {"labels": {"team": "x"}}, "spec": {"template": template}}
    bench.api.edit("Deployment", "chat-router", patch)
    await rests(bench)
    bench.ask(router={"auth": {"secretName": "keys"}})
    await bench.settle()
    deployment = bench.api.one("Deployment", "chat-router")
    assert deployment["metadata"]["labels"]["team"] == "x"
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["kubectl.kubernetes.io/restartedAt"] == "now"


async def test_an_apply_that_cannot_reach_its_goal_is_held_back_and_named():
    """And ends by its cure: whoever changes the field stops."""
    bench = await settled()

    def webhook(obj):
        if obj["kind"] == "Deployment":
            obj["spec"]["template"]["spec"]["containers"][0]["image"] = "mirror/engine"

    bench.api.webhook = webhook
    bench.api.edit("Deployment", "chat-router", {"metadata": {"labels": {"a": "b"}}}, "mirror")
    bench.ask(router={"image": "router:2"})
    applied = 0
    for _ in range(60):
        bench.now += 9
        applied += sum(call.startswith("apply") for call in (await bench.round())[1])
    assert bench.condition("Degraded") == ("True", "FieldContested")
    message = bench.message("Degraded")
    assert "Deployment chat-router: spec.template.spec.containers[name=router].image" in message
    assert "mirror" in message
    assert applied <= 7  # in ten minutes: after 5, 10, 20 … 300 s
    bench.api.webhook = lambda obj: None
    bench.now += 300
    await bench.settle()
    assert bench.condition("Degraded") == ("False", "AsExpected")


def test_moved_keeps_everybody_else_and_joins_ours():
    one = {"manager": names.MANAGER, "apiVersion": "v1"}
    entries = [
        {**one, "operation": "Update", "fieldsV1": {"f:spec": {"f:a": {}, "f:c": {}}}},
        {**one, "operation": "Apply", "fieldsV1": {"f:spec": {"f:b": {}}}},
        {**one, "operation": "Update", "subresource": "status", "fieldsV1": {"f:status": {}}},
        {**one, "operation": "Update", "apiVersion": "v0", "fieldsV1": {"f:old": {}}},
        {"manager": "x", "operation": "Update", "fieldsV1": {"f:spec": {"f:d": {}}}},
    ]
    joined = {"f:spec": {"f:a": {}, "f:b": {}, "f:c": {}}}
    assert fields.moved(entries) == [
        entries[2],
        entries[4],
        {**one, "operation": "Apply", "fieldsV1": joined},
    ]
    assert fields.slim(entries)[0] == {"manager": names.MANAGER, "operation": "Update"}
