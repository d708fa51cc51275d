import copy

import pytest
from pds_operator.diff import Verdict, covers, stamped, verdict

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
    assert verdict(WANTED, live(), "u") is Verdict.KEEP


def test_verdicts():
    assert verdict(WANTED, None, "u") is Verdict.CREATE
    assert verdict(WANTED, live(), "other") is Verdict.FOREIGN
    assert verdict(WANTED, live(selector={"a": "c"}), "u") is Verdict.APPLY


def test_a_field_that_is_no_longer_wanted_is_applied_away():
    less = copy.deepcopy(WANTED)
    del less["metadata"]["annotations"], less["spec"]["selector"]
    assert verdict(stamped(less), live(), "u") is Verdict.APPLY


def test_a_retained_claim_of_an_earlier_object_is_taken_over():
    claim = {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "c", "labels": {"app.kubernetes.io/managed-by": "pds-operator"}},
    }
    assert verdict(claim, claim, "new-uid") is Verdict.KEEP
    del claim["metadata"]["labels"]
    assert verdict(claim, claim, "new-uid") is Verdict.FOREIGN


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
