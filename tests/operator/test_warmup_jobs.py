"""The Jobs that compile, as they are rendered: one for each distinct pod template."""

from typing import Any

import pytest
from pds_operator import revision, schema
from pds_operator.errors import SpecError
from pds_operator.render import engine, warmup
from pds_operator.render.warmup import Ahead
from pds_operator.settings import Settings
from worlds import OWNER, desired, raw_spec

GPU = {"limits": {"nvidia.com/gpu": 1, "cpu": 4, "rdma/hca": 1}, "requests": {"rdma/hca": 1}}
SM_90 = Ahead("sm_90", {"pool": "cpu"})


def jobs(ahead: Ahead | None = None, **changes: Any) -> list[dict[str, Any]]:
    raw = raw_spec(**{"compileCache": {"volume": {"existingClaim": "c"}}, **changes})
    data = engine.render(raw, desired(raw).spec, OWNER, Settings())
    return warmup.jobs(OWNER, "abc", data, ahead)


def template(**spec: Any) -> dict[str, Any]:
    return {"podTemplate": {"spec": spec}}


def steps(job: dict[str, Any]) -> list[dict[str, Any]]:
    spec = job["spec"]["template"]["spec"]
    return [*spec["initContainers"], *spec["containers"]]


def shape(made: list[dict[str, Any]]) -> dict[str, list[str]]:
    return {job["metadata"]["name"]: [step["name"] for step in steps(job)] for job in made}


def test_roles_of_one_template_share_a_job():
    assert shape(jobs()) == {"chat-abc-warmup": ["prefill-0", "decode-0"]}


@pytest.mark.parametrize(
    "decode",
    [
        template(nodeSelector={"gpu": "small"}),
        template(tolerations=[{"key": "spot", "operator": "Exists"}]),
        template(volumes=[{"name": "model", "persistentVolumeClaim": {"claimName": "other"}}]),
        {"podTemplate": {"metadata": {"labels": {"team": "b"}}}},
        {"resources": {"limits": {"nvidia.com/gpu": 1}}},
    ],
    ids=["selector", "tolerations", "volumes", "metadata", "devices"],
)
def test_a_role_of_another_template_has_a_job_of_its_own(decode):
    assert shape(jobs(decode=decode)) == {
        "chat-abc-warmup": ["prefill-0"],
        "chat-abc-warmup-d": ["decode-0"],
    }


def test_more_of_the_same_resources_is_no_other_template():
    """The pod asks for the largest of its steps."""
    made = jobs(
        prefill={"resources": {"limits": {"cpu": 8}}}, decode={"resources": {"limits": {"cpu": 2}}}
    )
    assert shape(made) == {"chat-abc-warmup": ["prefill-0", "decode-0"]}


def test_a_job_has_what_the_podtemplate_gives():
    pod = {
        "metadata": {"labels": {"team": "a"}, "annotations": {"mesh/inject": "false"}},
        "spec": {
            "nodeSelector": {"gpu": "h200"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "volumes": [{"name": "more", "persistentVolumeClaim": {"claimName": "more"}}],
        },
    }
    [job] = jobs(prefill={"podTemplate": pod}, decode={"podTemplate": pod})
    inner = job["spec"]["template"]
    for meta in (job["metadata"], inner["metadata"]):
        assert meta["labels"]["team"] == "a"
        assert meta["labels"]["pdserving.io/role"] == "warmup"
        assert "pdserving.io/kv" not in meta["labels"]
        assert meta["annotations"]["mesh/inject"] == "false"
    assert inner["spec"]["nodeSelector"] == {"gpu": "h200"}
    assert {"key": "gpu", "operator": "Exists"} in inner["spec"]["tolerations"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in inner["spec"]["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims == {"c", "more"}


def test_a_job_has_a_deadline_for_each_step_and_the_start():
    cache = {"volume": {"existingClaim": "c"}, "warmup": {"timeoutSeconds": 100}}
    [job] = jobs(compileCache=cache, prefill={"parallelism": {"pp": 2}})
    assert job["spec"]["activeDeadlineSeconds"] == warmup.START_SECONDS + 3 * 100
    [job] = jobs()
    assert job["spec"]["activeDeadlineSeconds"] == warmup.START_SECONDS + 2 * 1800


def test_a_job_for_a_target_runs_on_a_node_without_gpus():
    pod = template(
        nodeSelector={"gpu": "h200"},
        runtimeClassName="nvidia",
        affinity={"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}},
        tolerations=[{"key": "gpu", "operator": "Exists"}],
    )
    role = {**pod, "resources": GPU}
    [job] = jobs(SM_90, prefill=role, decode=pod)
    assert shape([job]) == {"chat-abc-sm-90": ["prefill-0", "decode-0"]}
    assert job["metadata"]["labels"]["pdserving.io/target"] == "sm_90"
    spec = job["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"pool": "cpu"}
    assert not {"affinity", "runtimeClassName"} & spec.keys()
    assert {"key": "gpu", "operator": "Exists"} in spec["tolerations"]
    assert [step["resources"] for step in steps(job)] == [{"limits": {"cpu": 4}}, {}]
    for step in steps(job):
        assert {"name": "PDS_CACHE_TARGET", "value": "sm_90"} in step["env"]
        assert step["command"][1:] == ["warmup", "--config", "/etc/pds/engine.json"]
    [anywhere] = jobs(Ahead("sm_90"), prefill=role, decode=pod)
    assert "nodeSelector" not in anywhere["spec"]["template"]["spec"]


def test_names_of_jobs_fit_into_a_label():
    name = warmup.names.warmup("a" * 40, "0123456789", "sm_100", "decode")
    assert len(name) <= 63


def cache(**warm: Any) -> dict[str, Any]:
    return {"compileCache": {"volume": {"existingClaim": "c"}, "warmup": warm}}


def test_targets_change_no_pod_and_hence_no_revision():
    plain = raw_spec(compileCache={"volume": {"existingClaim": "c"}})
    asked = raw_spec(**cache(targets=["sm_90"], nodeSelector={"pool": "cpu"}))
    assert revision.digest(asked) == revision.digest(plain)
    back = revision.restored(asked, revision.affecting(raw_spec(**cache(workers=3))))
    assert back["compileCache"]["warmup"] == {
        "workers": 3,
        "targets": ["sm_90"],
        "nodeSelector": {"pool": "cpu"},
    }
    without = revision.restored(asked, revision.affecting(raw_spec(**cache(enabled=False))))
    assert without["compileCache"]["warmup"] == {"enabled": False}


@pytest.mark.parametrize(
    ("warm", "field"),
    [
        ({"targets": ["sm90"]}, "spec.compileCache.warmup.targets.0"),
        ({"targets": ["cpu"]}, "spec.compileCache.warmup.targets.0"),
        ({"targets": ["sm_9"] * 5}, "spec.compileCache.warmup.targets"),
        ({"nodeSelector": {"pool": "x" * 64}}, "spec.compileCache.warmup.nodeSelector.pool"),
    ],
)
def test_what_is_no_target_is_refused_by_its_field(warm, field):
    with pytest.raises(SpecError, match=field):
        schema.parse(raw_spec(**cache(**warm)))
