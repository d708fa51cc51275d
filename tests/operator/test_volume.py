"""A cache volume that cannot be used: a condition names it, and no revision is given up for it."""

import dataclasses
import json

import pytest
from pds_operator import schema
from pds_operator.decide.status import status
from pds_operator.decide.volume import problem
from pds_operator.facts.observed import LeaderState, Proof, WarmupPod, rfc3339
from pds_operator.facts.reading import proof, warmup_facts
from pds_operator.render import engine, warmup
from pds_operator.settings import Settings
from worlds import NOW, OWNER, World, desired, digest, raw_spec

FULL = "the compile cache's volume at /var/cache/pds is full (0 B of 64 KiB free): give it room"


def world(**volume: object) -> World:
    made = World(raw_spec(compileCache={"volume": volume or {"claim": {"size": "1Gi"}}}))
    made.settle()
    return made


def conditions(world: World) -> dict[str, tuple[str, str, str]]:
    states = {name: LeaderState(manifest="m1", fingerprint="kv") for name in world.pods}
    seen = dataclasses.replace(world.observed(), states=states)
    written = status(seen, desired(world.raw), world.plan(), {}, world.now)
    return {c["type"]: (c["status"], c["reason"], c["message"]) for c in written["conditions"]}


def prove(world: World, volume: str = "", at: float = NOW, *pods: str) -> None:
    for name in pods or list(world.pods):
        made = Proof("m1", compiled=2, volume=volume)
        world.change(name, proof=made, created=at)


@pytest.mark.parametrize(
    ("volume", "name"),
    [
        ({"claim": {"size": "1Gi"}}, "claim chat-cache"),
        ({"existingClaim": "shared"}, "claim shared"),
        ({"ephemeral": {}}, "ephemeral volume"),
    ],
)
def test_a_condition_names_the_volume_and_the_cure_while_pods_serve(volume, name):
    here = world(**volume)
    prove(here, FULL)
    found = conditions(here)
    assert found["Ready"][0] == "True"
    assert found["Degraded"] == (
        "True",
        "CacheVolumeUnusable",
        f"the compile cache's {name} cannot be used, pods compile for themselves and serve all "
        f"the same; chat-p-1-0-0 says, as do 2 others: {FULL}",
    )
    assert found["KernelsWarm"][:2] == ("True", "WarmPrivate")
    assert found["KernelsWarm"][2].endswith(f"3 pods compiled for themselves: {FULL}")
    assert not here.plan_writes()


def test_a_path_of_the_node_is_named_too():
    here = world()
    prove(here, FULL)
    raw = raw_spec(compileCache={"volume": {"hostPath": "/srv/cache"}})
    found = problem("chat", schema.parse(raw), here.observed(), here.plan().groups)
    assert found.message.startswith("the compile cache's hostPath /srv/cache cannot be used")


def test_a_volume_that_later_pods_find_good_is_no_problem_any_more():
    here = world()
    prove(here, FULL)
    prove(here, "", NOW + 30, "chat-d-0-0-0")  # made with the others: it was lucky
    assert conditions(here)["Degraded"][1] == "CacheVolumeUnusable"
    prove(here, "", NOW + 300, "chat-d-0-0-0")
    found = conditions(here)
    assert found["Degraded"][:2] == ("False", "AsExpected")
    assert found["KernelsWarm"][:2] == ("True", "WarmPrivate")  # which is still so of the others
    prove(here, "")
    assert conditions(here)["KernelsWarm"][:2] == ("True", "Warm")


def test_a_job_that_compiles_nothing_for_want_of_a_volume_fails_no_revision():
    here = world()
    prove(here)
    here.compiles = True
    here.raw = raw_spec(**{**here.raw, "image": "engine:2"})
    here.round()
    assert here.round() == [f"job chat-{digest(here.raw)}-warmup"]
    here.warmups = (
        WarmupPod("w", digest(here.raw), scheduled=True, volume=FULL, created=NOW + 100),
    )
    assert conditions(here)["Degraded"][1] == "CacheVolumeUnusable"
    here.end_job()
    here.settle()
    assert {pod.revision for pod in here.pods.values()} == {digest(here.raw)}
    assert not any(revision.failed for revision in here.revisions.values())


def ended(message: str, exit_code: int = 0) -> dict:
    state = {"terminated": {"exitCode": exit_code, "message": message}}
    return {"name": "warmup", "state": state}


def test_a_proof_reports_the_volume():
    message = json.dumps({"manifest": "m", "compiled": 2, "volume": FULL})
    assert proof(ended(message)) == Proof("m", compiled=2, volume=FULL)


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (None, ""),
        (7, ""),
        ({"a": 1}, ""),
        ("two\nlines\x1b[31m\x00 and\ta tab", "two lines [31m and a tab"),
        ("x" * 5000, "x" * 600),
    ],
)
def test_what_a_pod_says_is_a_line_of_bounded_length(said, read):
    assert proof(ended(json.dumps({"manifest": "m", "volume": said}))) == Proof("m", volume=read)


def test_a_proof_of_an_older_engine_says_nothing_of_the_volume():
    assert proof(ended('{"manifest": "m", "error": ""}')) == Proof("m")


@pytest.mark.parametrize(
    ("said", "read"),
    [
        (["attention over pages", "experts"], ("attention over pages", "experts")),
        (["a\nb", 3, None], ("a b",)),
        ("experts", ()),
        (["x"] * 100, ("x",) * 8),
    ],
)
def test_what_is_not_compiled_is_read_as_words(said, read):
    assert proof(ended(json.dumps({"manifest": "m", "eager": said}))) == Proof("m", eager=read)


def test_the_pod_of_a_job_reports_what_one_of_its_steps_met():
    quiet, loud = ('{"manifest": ""}', json.dumps({"manifest": "", "volume": FULL}))
    obj = {
        "metadata": {"name": "w", "creationTimestamp": rfc3339(NOW)},
        "status": {
            "initContainerStatuses": [ended(quiet)],
            "containerStatuses": [ended(loud)],
        },
    }
    found = warmup_facts(obj)
    assert found == WarmupPod("w", "", volume=FULL, created=NOW, targets=frozenset({""}))


def test_a_job_works_for_others_alone_and_a_pod_for_itself():
    raw = raw_spec(compileCache={"volume": {"existingClaim": "c"}})
    data = engine.render(raw, desired(raw).spec, OWNER, Settings())
    [job] = warmup.jobs(OWNER, "abc", data)
    steps = job["spec"]["template"]["spec"]
    for step in [*steps["initContainers"], *steps["containers"]]:
        assert {"name": "PDS_CACHE_ONLY_SHARED", "value": "true"} in step["env"]
    pod = engine.pod(OWNER, data, "prefill", 0, 0, 0, 0)
    assert "PDS_CACHE_ONLY_SHARED" not in json.dumps(pod)


def test_warm_up_and_engine_of_a_pod_share_the_folder_that_they_compile_in():
    """The warm-up's artefacts are private where the volume takes none: /tmp is theirs together."""
    raw = raw_spec(compileCache={"volume": {"existingClaim": "c"}})
    data = engine.render(raw, desired(raw).spec, OWNER, Settings())
    pod = engine.pod(OWNER, data, "prefill", 0, 0, 0, 0)["spec"]
    for container in [*pod["initContainers"], *pod["containers"]]:
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
    assert {"name": "tmp", "emptyDir": {}} in pod["volumes"]
