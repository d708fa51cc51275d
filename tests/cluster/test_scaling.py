"""Replicas up and down under load: nobody's request fails, and the status tells the truth."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from pds_cluster.testing import Cluster
from serving import Object, Serving, manifest
from streams import REST, crowd, known

pytestmark = pytest.mark.cluster

ROLES = ("prefill", "decode")
LAG = 10.0
"""Seconds by which the status may be behind the pods, on two busy cores."""
STEPS = [("prefill", 3), ("prefill", 1), ("decode", 2)]


@dataclass(frozen=True)
class Look:
    """What one moment shows: the object, and beside it the groups as their pods are."""

    at: float
    row: tuple[str, ...]
    """Of `kubectl get pds`: NAME MODEL PREFILL DECODE READY ROLLOUT."""
    generation: int
    status: Object
    ready: dict[str, int]
    draining: dict[str, int]

    @property
    def settled(self) -> bool:
        conditions = {c["type"]: c["status"] for c in self.status["conditions"]}
        fresh = self.status["observedGeneration"] == self.generation
        done = conditions["Progressing"] == "False" and conditions["Ready"] == "True"
        return bool(fresh and done)


def look(serving: Serving) -> Look:
    row, own = serving.row(), serving.get()
    ready, draining = {}, {}
    for role in ROLES:
        of_role = serving.pods(role)
        leaving = ["pdserving.io/draining" in p["metadata"]["labels"] for p in of_role]
        stays = [p for p, leaves in zip(of_role, leaving, strict=True) if not leaves]
        ready[role] = sum(map(is_ready, stays))
        draining[role] = sum(leaving)
    return Look(
        time.monotonic(),
        tuple(row[:6]),
        own["metadata"]["generation"],
        own["status"],
        ready,
        draining,
    )


def is_ready(pod: Object) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def scaled(serving: Serving, role: str, replicas: int, timeout: float = 240) -> list[Look]:
    """Apply the new count; every look from before it until all has settled."""
    looks = [look(serving)]
    serving.apply(**{role: {**serving.object["spec"][role], "replicas": replicas}})
    deadline = time.monotonic() + timeout
    while not looks[1:] or not looks[-1].settled:
        assert time.monotonic() < deadline, looks[-1]
        time.sleep(0.1)
        looks.append(look(serving))
    # The row of a look is read just before the rest: only the next one is of a settled object.
    return [*looks, look(serving)]


def assert_true_all_along(looks: list[Look]) -> None:
    """Each number of the status was so among the pods within the last LAG seconds.

    Pods come and go one by one: what lies between two looks was so, too.
    """
    for index, each in enumerate(looks):
        recent = [past for past in looks[: index + 1] if past.at >= each.at - LAG]
        for role in ROLES:
            counts = each.status[role]
            assert counts["summary"] == f"{counts['ready']}/{counts['desired']}"
            for number in ("ready", "draining"):
                there = [getattr(past, number)[role] for past in recent]
                assert min(there) <= counts[number] <= max(there), (role, number, each)


def assert_true_at_the_end(last: Look, wanted: dict[str, int]) -> None:
    for role, count in wanted.items():
        expected = {"desired": count, "created": count, "ready": count, "updated": count}
        expected |= {"draining": 0}
        counts = last.status[role]
        assert {key: counts[key] for key in expected} == expected
        assert (last.ready[role], last.draining[role]) == (count, 0)
    summaries = tuple(f"{count}/{count}" for count in wanted.values())
    assert last.row == ("chat", "tiny", *summaries, "True", "Complete")


@pytest.fixture(scope="module")
def serving(chat: Serving) -> Serving:
    """Two prefill groups and one decode group."""
    chat.sized(prefill=2, decode=1)
    return chat


def test_scaling_under_load_fails_no_request(serving: Serving) -> None:
    wanted = {"prefill": 2, "decode": 1}
    questions = known(serving, at_least=6)
    with crowd(serving.url, questions, clients=4, seconds=600, rest=REST) as clients:
        clients.goes_on()
        for role, replicas in STEPS:
            before, done = wanted[role], len(clients.outcomes)
            began = time.monotonic()
            looks = scaled(serving, role, replicas)
            wanted[role] = replicas
            seconds = time.monotonic() - began
            answers = len(clients.outcomes) - done
            print(f"{role} {before} to {replicas}: {seconds:.1f} s, {answers} answers")
            print("  ", *dict.fromkeys(" ".join(each.row[2:]) for each in looks), sep=" | ")
            assert_true_all_along(looks)
            assert_true_at_the_end(looks[-1], wanted)
            between = {each.row[5] for each in looks[1:-1]}
            assert between & ({"Draining"} if replicas < before else {"Creating", "Starting"})
            assert not clients.troubles
        clients.goes_on()
    print(f"{len(clients.outcomes)} requests, {len(clients.troubles)} failed")
    assert not clients.troubles
    assert len(clients.outcomes) >= 4 * len(STEPS)


def evict(serving: Serving, pod: str) -> None:
    """As `kubectl drain` does with each pod of a node: the eviction, which PDBs may refuse."""
    meta = {"name": pod, "namespace": serving.namespace}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta}
    path = f"/api/v1/namespaces/{serving.namespace}/pods/{pod}/eviction"
    serving.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def delete(serving: Serving, pod: str) -> None:
    serving.cluster.kubectl("-n", serving.namespace, "delete", "pod", pod, "--wait=false")


@pytest.mark.parametrize("leave", [evict, delete])
def test_a_pod_that_must_leave_ends_its_streams_first(
    serving: Serving, leave: Callable[[Serving, str], None]
) -> None:
    """SIGTERM is a drain, whoever sends it; the replacement does not wait for its end."""
    serving.sized(decode=2)
    questions = known(serving, at_least=6)
    with crowd(serving.url, questions, clients=4, seconds=300, rest=REST) as clients:
        clients.goes_on()
        leaving, stays = (pod["metadata"]["name"] for pod in serving.pods("decode"))
        leave(serving, leaving)

        def replaced() -> bool:
            names = {pod["metadata"]["name"] for pod in serving.pods("decode")}
            return leaving not in names and stays in names and look(serving).ready["decode"] == 2

        serving.until(f"{leaving} is replaced", replaced, 120)
        clients.goes_on()
    print(f"{len(clients.outcomes)} requests, {len(clients.troubles)} failed")
    assert not clients.troubles


def test_kubectl_scales_a_role_whose_replicas_are_left_out(
    operator: Cluster, own_namespace: str
) -> None:
    small = {"resources": {"requests": {"cpu": "100m"}}}
    spec = {"prefill": None, "decode": None, "unified": small}
    serving = Serving(operator, own_namespace, manifest("free", **spec))
    serving.apply()
    serving.settled()
    assert len(serving.pods("unified")) == 1
    here = ("-n", own_namespace)
    operator.kubectl(*here, "scale", "pdsr", "free-unified", "--replicas=2")

    def columns() -> list[str]:
        return operator.kubectl(*here, "get", "pdsr", "free-unified", "--no-headers").split()

    serving.until("two groups are ready", lambda: columns()[1:4] == ["2", "2", "2"], 240)
    assert len(serving.pods("unified")) == 2
    path = f"/apis/pdserving.io/v1alpha1/namespaces/{own_namespace}/pdservingroles/free-unified"
    scale = json.loads(operator.kubectl("get", "--raw", f"{path}/scale"))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    chosen = operator.kubectl(*here, "get", "pods", "-l", scale["status"]["selector"], "-o", "name")
    assert sorted(chosen.split()) == ["pod/free-u-0-0-0", "pod/free-u-1-0-0"]
    serving.apply(unified={**small, "replicas": 1})
    serving.settled()
    assert operator.kubectl(*here, "get", "pdsr", "--no-headers", "--ignore-not-found") == ""
