import pytest
from pds_operator.errors import SpecError
from pds_operator.schema.merge import merged

BASE = {
    "metadata": {"labels": {"pdserving.io/name": "chat"}},
    "spec": {
        "containers": [
            {
                "name": "engine",
                "image": "a",
                "env": [{"name": "HOME", "value": "/tmp"}],
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            }
        ],
        "tolerations": [{"key": "x"}],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    },
}


def merge(spec: dict) -> dict:
    return merged(BASE, {"spec": spec}, "spec.decode.podTemplate")["spec"]


def test_lists_merge_by_their_key():
    spec = merge(
        {
            "containers": [
                {"name": "engine", "env": [{"name": "HOME", "value": "/h"}, {"name": "A"}]},
                {"name": "sidecar", "image": "b"},
            ],
            "volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}],
        }
    )
    engine, sidecar = spec["containers"]
    assert engine["image"] == "a"
    assert engine["env"] == [{"name": "HOME", "value": "/h"}, {"name": "A"}]
    assert sidecar == {"name": "sidecar", "image": "b"}
    assert spec["volumes"] == [{"name": "tmp", "emptyDir": {"medium": "Memory"}}]


def test_tolerations_are_appended_and_the_rest_replaced():
    spec = merge({"tolerations": [{"key": "y"}], "nodeSelector": {"a": "b"}, "dnsPolicy": "None"})
    assert spec["tolerations"] == [{"key": "x"}, {"key": "y"}]
    assert spec["nodeSelector"] == {"a": "b"}
    assert spec["dnsPolicy"] == "None"


def test_nothing_given_is_changed():
    before = repr(BASE)
    merge({"containers": [{"name": "engine", "image": "z"}]})
    assert repr(BASE) == before


def engine(**container: object) -> dict:
    return {"spec": {"containers": [{"name": "engine", **container}]}}


@pytest.mark.parametrize(
    ("template", "named"),
    [
        (engine(command=["sh"]), "command"),
        (engine(readinessProbe={}), "readinessProbe"),
        (
            {"spec": {"containers": [{"name": "engine", "ports": [{"containerPort": 8000}]}]}},
            "8000",
        ),
        (
            {"spec": {"containers": [{"name": "engine", "env": [{"name": "PDS_GROUP"}]}]}},
            "PDS_GROUP",
        ),
        ({"spec": {"initContainers": [{"name": "warmup", "args": []}]}}, "args"),
        ({"spec": {"containers": [{"image": "no-name"}]}}, "needs name"),
        ({"spec": {"restartPolicy": "Always"}}, "restartPolicy"),
        ({"metadata": {"labels": {"pdserving.io/role": "x"}}}, "pdserving.io/role"),
        ({"metadata": {"name": "x"}}, "metadata.name"),
        ({"status": {}}, "status"),
        ({"spec": {"containers": "engine"}}, "must be a list"),
    ],
)
def test_what_is_ours_is_refused_by_name(template, named):
    with pytest.raises(SpecError, match=named) as caught:
        merged(BASE, template, "spec.decode.podTemplate")
    assert caught.value.message.startswith("spec.decode.podTemplate")
