import copy

import pytest
from fake_api import _merged
from pds_operator.decide.diff import ObjectVerdict, covers, difference, excess, stamped, verdict

WANTED = stamped(
    {
        "kind": "Service",
        "metadata": {
            "name": "chat",
            "ownerReferences": [{"uid": "u", "controller": True}],
        },
        "spec": {"ports": [{"port": 80}], "selector": {"a": "b"}},
    }
)


def live(**spec: object) -> dict:
    obj = copy.deepcopy(WANTED)
    obj["spec"] |= {"clusterIP": "10.0.0.1", "ports": [{"port": 80, "protocol": "TCP"}], **spec}
    return obj


def test_what_the_server_filled_in_is_no_difference():
    assert verdict(WANTED, live()) is ObjectVerdict.KEEP


def test_verdicts():
    assert verdict(WANTED, None) is ObjectVerdict.CREATE
    assert verdict(WANTED, live(selector={"a": "c"})) is ObjectVerdict.APPLY
    posted = live()
    posted["metadata"]["managedFields"] = [{"manager": "pds-operator", "operation": "Update"}]
    assert verdict(WANTED, posted) is ObjectVerdict.TAKE_OVER
    posted["metadata"]["managedFields"][0]["subresource"] = "status"
    assert verdict(WANTED, posted) is ObjectVerdict.KEEP


def test_a_field_that_is_no_longer_wanted_is_applied_away():
    less = copy.deepcopy(WANTED)
    del less["metadata"]["annotations"], less["spec"]["selector"]
    assert verdict(stamped(less), live()) is ObjectVerdict.APPLY


def test_a_claim_that_was_retained_is_adopted_once_it_is_to_go_with_its_owner():
    claim = {"kind": "PersistentVolumeClaim", "metadata": {"name": "c"}}
    assert verdict(claim, claim) is ObjectVerdict.KEEP
    wanted = {**claim, "metadata": {"name": "c", "ownerReferences": [{"uid": "u"}]}}
    assert verdict(wanted, claim) is ObjectVerdict.ADOPT


DEPLOYMENT = {
    "kind": "Deployment",
    "metadata": {"name": "r", "ownerReferences": [{"uid": "u", "controller": True}]},
    "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "strategy": {"type": "RollingUpdate"},
        "template": {
            "metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "router", "env": [{"name": "HOME", "value": "/"}]}]},
        },
    },
}


def foreign(**more: object) -> dict:
    """DEPLOYMENT, with what others added."""
    obj = copy.deepcopy(DEPLOYMENT)
    template = obj["spec"]["template"]
    for key, value in more.items():
        match key:
            case "label":
                template["metadata"]["labels"] |= value
            case "annotation":
                template["metadata"]["annotations"] = value
            case "container":
                template["spec"]["containers"].insert(0, value)
            case "env":
                template["spec"]["containers"][0]["env"].insert(0, value)
            case "node":
                template["spec"]["nodeSelector"] = value
            case "default":
                template["spec"] |= value
    return obj


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"default": {"dnsPolicy": "ClusterFirst", "tolerations": []}}, ""),
        ({"annotation": {"kubectl.kubernetes.io/restartedAt": "now"}}, ""),
        ({"label": {"x": "y"}}, "spec.template.metadata.labels.x"),
        ({"node": {"disk": "ssd"}}, "spec.template.spec.nodeSelector.disk"),
        ({"container": {"name": "side"}}, "spec.template.spec.containers"),
        ({"env": {"name": "A"}}, "spec.template.spec.containers[name=router].env"),
    ],
)
def test_what_others_added_is_named_by_its_field_and_taken_away(more, path):
    there = foreign(**more)
    assert difference(DEPLOYMENT, there) == path
    patch = excess(DEPLOYMENT, there)
    assert bool(patch) is bool(path)
    assert difference(DEPLOYMENT, _merged(there, patch)) == ""


def test_another_owner_beside_ours_may_stay():
    there = foreign()
    there["metadata"]["ownerReferences"].append({"uid": "x"})
    assert (difference(DEPLOYMENT, there), excess(DEPLOYMENT, there)) == ("", {})


@pytest.mark.parametrize(
    "spec",
    [
        {"selector": {"a": "b", "c": "d"}},
        {"ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "name": "more"}]},
    ],
)
def test_a_service_selects_and_offers_exactly_what_is_ours(spec):
    assert verdict(WANTED, live(**spec)) is ObjectVerdict.APPLY
    kept = _merged(live(**spec), excess(WANTED, live(**spec)))
    assert difference(WANTED, kept) == ""
    assert kept["spec"]["clusterIP"] == "10.0.0.1"
    assert kept["spec"]["ports"] == [{"port": 80, "protocol": "TCP"}]


@pytest.mark.parametrize(
    ("there", "wanted", "same"),
    [
        ("500m", "0.5", True),
        ("1Gi", "1024Mi", True),
        (2, "2", True),
        ("1", "2", False),
        ("one", "two", False),
        (True, 1, True),
        (None, {}, True),
        (None, "", True),
        (None, "x", False),
        ([1, 2], [1], False),
        ({"a": 1, "b": 2}, {"a": 1}, True),
    ],
)
def test_covers(there, wanted, same):
    assert covers(there, wanted) is same
