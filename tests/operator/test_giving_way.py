"""A Job that is refused, or starts nothing, gives way to init containers: once a rollout."""

from typing import Any

import pytest
from bench import Bench
from pds_operator import errors
from pds_operator.decide.status import status
from pds_operator.facts.observed import GaveWay, ScopeFailure, WarmupPod
from worlds import NOW, World, desired, digest, raw_spec

SHARED = {"compileCache": {"volume": {"existingClaim": "c"}}}
OLD = raw_spec(**SHARED)
NEW = raw_spec(**SHARED, image="engine:2")
JOB = f"chat-{digest(NEW)}-warmup"
START = NOW + 60
FIRST = ["chat-p-2-0-0", "chat-d-1-0-0"]


@pytest.fixture
def world() -> World:
    """Settled; the spec has a new image, and its revision is stored."""
    return rolling(OLD, NEW)


def rolling(old: dict[str, Any], new: dict[str, Any]) -> World:
    world = World(old)
    world.settle()
    world.now = START
    world.compiles = True
    world.raw = new
    world.round()
    return world


def refuse(world: World, reason: str, count: int = 1) -> None:
    failure = ScopeFailure(reason, f"create job {JOB}: no", count, world.now + 5, world.now)
    world.failures = {f"Job/{JOB}": failure}


def condition(world: World, kind: str) -> tuple[str, str, str]:
    written = status(world.observed(), desired(world.raw), world.plan(), {}, world.now)
    [found] = [item for item in written["conditions"] if item["type"] == kind]
    return found["status"], found["reason"], found["message"]


def forget(world: World) -> None:
    """The operator starts anew."""
    world.failures = {}


@pytest.mark.parametrize(
    ("reason", "cure"),
    [
        ("QuotaExceeded", "raise the namespace's quota of jobs (count/jobs.batch)"),
        ("LimitRange", "let the LimitRange admit"),
        ("Forbidden", "a policy or webhook refuses it"),
        ("Invalid", "a policy or webhook refuses it"),
    ],
)
def test_a_job_that_is_refused_gives_way_at_once(world, reason, cure):
    refuse(world, reason)
    assert world.round() == FIRST
    assert world.revisions[digest(NEW)].gave_way[JOB].reason == "WarmupJobRefused"
    assert condition(world, "Progressing")[1] == "WarmupInInit"
    state, said, message = condition(world, "KernelsWarm")
    assert (state, said) == ("False", "WarmupJobRefused")
    assert f"the Job {JOB} is refused ({reason}): create job {JOB}: no; {cure}" in message


def test_an_api_server_that_starts_is_asked_again_before_a_job_gives_way(world):
    refuse(world, "ApiUnreachable", count=2)
    assert world.round() == []
    assert condition(world, "Progressing")[1] == "WarmupRunning"
    refuse(world, "ApiUnreachable", count=3)
    assert world.round() == FIRST


def test_a_restart_remembers_what_gave_way(world):
    refuse(world, "QuotaExceeded")
    world.round()
    forget(world)
    for name in FIRST:
        del world.pods[name]  # a quota of pods is full, too
    world.now += 600
    assert world.round() == FIRST
    assert condition(world, "Progressing")[1] == "WarmupInInit"


def test_another_rollout_to_the_same_revision_asks_for_the_job_again(world):
    refuse(world, "QuotaExceeded")
    world.round()
    forget(world)
    world.raw = OLD
    world.settle()
    world.now += 600
    world.raw = NEW
    assert world.round() == [f"job {JOB}"]
    assert not world.revisions[digest(NEW)].gave_way


def test_a_job_of_a_stranger_by_that_name_gives_way(world):
    meta = {"name": JOB, "namespace": "team", "uid": "uid-other", "labels": {}}
    world.objects["Job", JOB] = {"kind": "Job", "metadata": meta}
    assert world.round() == FIRST
    assert "a Job of that name is somebody else's" in condition(world, "KernelsWarm")[2]


def pending(world: World, **facts: Any) -> None:
    pod = WarmupPod(f"{JOB}-x", digest(NEW), owner=f"uid-Job-{JOB}", **facts)
    world.warmups = (pod,) if facts else ()


def test_a_job_whose_pods_a_quota_refuses_gives_way_after_two_minutes(world):
    assert world.round() == [f"job {JOB}"]
    pending(world)
    world.now = START + 119
    assert world.round() == []
    world.now = START + 120
    assert world.round() == [f"delete job {JOB}", *FIRST]
    [gave] = world.revisions[digest(NEW)].gave_way.values()
    assert gave.at == START + 120
    _, said, message = condition(world, "KernelsWarm")
    assert said == "WarmupJobPending"
    assert (
        "it has no pod; where a quota, LimitRange or policy of pods refuses it, kubectl" in message
    )


def test_a_job_whose_node_prepares_nothing_gives_way_after_five_minutes(world):
    """A volume that another node holds: no time-out of the warm-up's runs."""
    world.round()
    pending(world, scheduled=True, unprepared=START + 10)
    world.now = START + 309
    assert world.round() == []
    world.now = START + 310
    assert world.round() == [f"delete job {JOB}", *FIRST]
    assert "sets up no volumes" in condition(world, "KernelsWarm")[2]


def test_a_job_that_passes_its_deadline_gives_way_and_fails_no_revision(world):
    world.round()
    world.end_job("Failed")
    world.objects["Job", JOB]["status"]["conditions"][0]["reason"] = "DeadlineExceeded"
    assert world.round() == [f"delete job {JOB}", *FIRST]
    assert not world.revisions[digest(NEW)].failed
    assert condition(world, "KernelsWarm")[1] == "WarmupJobLate"


def test_what_people_write_into_the_note_is_nothing(world):
    facts = world.stored
    obj = world.objects["ControllerRevision", f"chat-{digest(NEW)}"]
    for text in ("", "[]", "{", '{"a": 1}', '{"a": {"reason": "R"}}'):
        obj["metadata"]["annotations"] = {"pdserving.io/gave-way": text}
        assert facts(obj).gave_way == {}
    good = '{"a": {"reason": "R", "message": "m", "at": 1.5}}'
    obj["metadata"]["annotations"] = {"pdserving.io/gave-way": good}
    assert facts(obj).gave_way == {"a": GaveWay("R", "m", 1.5)}


def test_pods_wait_for_the_last_of_two_jobs():
    other = {"podTemplate": {"spec": {"nodeSelector": {"gpu": "small"}}}}
    old = raw_spec(**SHARED, decode={"replicas": 1, **other})
    world = rolling(old, {**old, "image": "engine:2"})
    first = f"chat-{digest(world.raw)}-warmup"
    assert world.round() == [f"job {first}", f"job {first}-d"]
    refused = ScopeFailure("QuotaExceeded", "no", 1, world.now + 5, world.now)
    del world.objects["Job", f"{first}-d"]
    world.failures = {f"Job/{first}-d": refused}
    assert world.round() == []
    assert condition(world, "Progressing")[1] == "WarmupRunning"
    forget(world)
    world.end_job()
    assert world.round() == FIRST
    assert condition(world, "KernelsWarm")[1] == "WarmupJobRefused"


def full(kind: str):
    """A quota of that kind is full."""

    def refuse(verb: str, obj: dict[str, Any]) -> Exception | None:
        if verb != "create" or obj["kind"] != kind:
            return None
        said = f'{kind} "x" is forbidden: exceeded quota: q, requested: 1, used: 1, limited: 1'
        return errors.from_status(403, {"reason": "Forbidden", "message": said})

    return refuse


@pytest.mark.parametrize(("kind", "end"), [("Pod", "WarmupInInit"), ("Job", "Complete")])
async def test_half_an_hour_of_a_full_quota_asks_for_one_job(kind, end):
    """Of pods: those that take the Job's place are refused, too, and there were 28 Jobs."""
    bench = Bench(OLD)
    bench.api.clock = lambda: bench.now
    await bench.settle()
    bench.api.refuse = full(kind)
    bench.ask(image="engine:2")
    calls: list[str] = []
    until = bench.now + 1800
    while bench.now < until:
        wait, done = await bench.round()
        calls += done
        bench.run_pods()
        bench.now += min(wait, 5.0)
    assert len([call for call in calls if call.startswith("create Job")]) == 1
    assert bench.condition("Progressing")[1] == end
