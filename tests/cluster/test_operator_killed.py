"""The operator killed at random moments of one rollout: the end is as if it had lived.

Three replicas, of which the one that leads is killed each time (SIGKILL: it gives nothing back),
and a watch that keeps every event of every pod, by which the bounds are audited afterwards.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pds_cluster.testing import Cluster
from serving import Object, Serving, manifest
from streams import REST, crowd, known

pytestmark = pytest.mark.cluster

SEED = 20
TERM = 3
"""Of the Lease, in seconds: how long nobody leads after each kill."""
LONGEST = 2.5
"""Seconds that an operator leads before it is killed, at most: some are killed at once."""
STEADY = 2.5
"""minReadySeconds for each kill, so that the rollout takes longer than all the kills on a quiet
machine too."""
GROUPS = 2
"""Of each role."""
ROLES = ("prefill", "decode")
SURGE = 1
UNAVAILABLE = 0
OURS = ("-n", "pds-system")
LEASE = "/apis/coordination.k8s.io/v1/namespaces/pds-system/leases/pdserving"
OWNED = (
    "pods,services,configmaps,secrets,poddisruptionbudgets,deployments,controllerrevisions.apps,"
    "networkpolicies,serviceaccounts,rolebindings,persistentvolumeclaims,jobs"
)


@pytest.fixture(scope="module")
def replicas(operator: Cluster) -> Iterator[Cluster]:
    """The chart's Deployment with three pods, and a Lease of TERM seconds."""
    deployment = "deployment/pdserving"

    def shape(count: int, lease: str) -> None:
        operator.kubectl(*OURS, "set", "env", deployment, f"PDS_OPERATOR_LEASE__SECONDS{lease}")
        operator.kubectl(*OURS, "scale", deployment, f"--replicas={count}")
        operator.kubectl(*OURS, "rollout", "status", deployment, "--timeout=120s", timeout=130)

    shape(3, f"={TERM}")
    yield operator
    shape(1, "-")


@pytest.fixture(scope="module")
def served(replicas: Cluster, namespace: str) -> Serving:
    role = {"replicas": GROUPS, "resources": {"requests": {"cpu": "50m"}}}
    rollout = {"drainSeconds": 30, "maxSurge": SURGE, "maxUnavailable": UNAVAILABLE}
    spec = manifest("kept", prefill=role, decode=role, rollout=rollout)
    serving = Serving(replicas, namespace, spec)
    serving.apply()
    serving.settled()
    return serving


@dataclass
class Killer:
    """Ends the operator that leads, whichever of the pods that is."""

    cluster: Cluster
    draw: random.Random = field(default_factory=lambda: random.Random(SEED))
    last: str = ""
    """The identity that was killed last."""
    moments: list[float] = field(default_factory=list)

    def kill(self) -> None:
        """Wait for the next leader, let it be for a random time, and kill -9."""
        identity = self._leader()
        time.sleep(self.draw.uniform(0, LONGEST))
        name = identity.rsplit("_", 2)[0]
        pod = self.cluster.get("pod", name, OURS[1])
        os.kill(_pid(pod["metadata"]["uid"]), signal.SIGKILL)
        self.moments.append(time.monotonic())
        self.last = identity
        # Another pod in its place: a container that dies again and again is held back longer
        # and longer by the kubelet.
        words = ("delete", "pod", name, "--force", "--grace-period=0", "--wait=false")
        self.cluster.kubectl(*OURS, *words)

    def _leader(self) -> str:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            lease = self.cluster.read(LEASE)["spec"]
            holder = str(lease.get("holderIdentity") or "")
            if holder and holder != self.last:
                return holder
            time.sleep(0.1)
        raise AssertionError(f"no operator leads since {self.last} was killed")


def _pid(uid: str) -> int:
    """Of the operator in the pod of that UID, on the node that this test runs on."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            ours = b"pds-operator" in (folder / "cmdline").read_bytes()
            if ours and uid in (folder / "cgroup").read_text():
                return int(folder.name)
    raise LookupError(f"no operator in pod {uid}")


@contextmanager
def watched(served: Serving, path: Path) -> Iterator[None]:
    """Every event of the namespace's pods, as kubectl writes them to `path`."""
    words = ("get", "pods", "-w", "--output-watch-events", "-o", "json")
    command = served.cluster.command("-n", served.namespace, *words)
    with path.open("wb") as out, subprocess.Popen(command, stdout=out) as child:
        try:
            yield
            assert child.poll() is None, "the watch broke off"
        finally:
            child.terminate()


def events(path: Path) -> Iterator[tuple[str, Object]]:
    """(type, pod) in the order of the API server; the last may be cut off."""
    text, decoder, at = path.read_text(), json.JSONDecoder(), 0
    with suppress(json.JSONDecodeError):
        while at < len(text.rstrip()):
            event, at = decoder.raw_decode(text, at)
            at += len(text[at:]) - len(text[at:].lstrip())
            yield event["type"], event["object"]


@dataclass
class Audit:
    """What the events of engine pods say of a rollout's bounds."""

    pods: dict[str, Object] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    """Every pod that ever was: its name by UID."""
    most: Counter[str] = field(default_factory=Counter)
    """Groups of a role at once; as in a Deployment, those that are deleted already left out."""
    least: dict[str, int] = field(default_factory=dict)
    """Groups of a role that served at the moment one was taken out."""
    taken: int = 0
    """Groups that were taken out."""

    def see(self, kind: str, pod: Object) -> None:
        meta = pod["metadata"]
        role, name = meta["labels"].get("pdserving.io/role", ""), str(meta["name"])
        if role not in ROLES:
            return
        before = self.pods.get(name)
        self.made[meta["uid"]] = name
        if kind == "DELETED":
            self.pods.pop(name, None)
        else:
            self.pods[name] = pod
        stay = sum("deletionTimestamp" not in each["metadata"] for each in self._of(role))
        self.most[role] = max(self.most[role], stay)
        if before is not None and serves(before) and leaves(pod):
            left = sum(serves(each) for each in self._of(role))
            self.least[role] = min(self.least.get(role, left), left)
            self.taken += 1

    def _of(self, role: str) -> list[Object]:
        return [
            p for p in self.pods.values() if p["metadata"]["labels"]["pdserving.io/role"] == role
        ]


def leaves(pod: Object) -> bool:
    meta = pod["metadata"]
    return "deletionTimestamp" in meta or "pdserving.io/draining" in meta["labels"]


def serves(pod: Object) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True" and not leaves(pod)


def shape(served: Serving) -> Counter[str]:
    """What there is, by kind and name; revisions, group numbers and random ends left out."""
    words = ("-n", served.namespace, "get", OWNED, "-o", "name")
    mine = [w for w in served.cluster.kubectl(*words).split() if f"/{served.name}" in w]
    return Counter(
        re.sub(r"(?<=[-\w])-([0-9a-f]{10}|\d+-\d+-\d+|[0-9a-z]{9,10}-[0-9a-z]{5})$", "-#", w)
        for w in mine
    )


def revisions(served: Serving) -> Counter[str]:
    """Groups by role and revision."""
    return Counter(
        f"{role} {pod['metadata']['labels']['pdserving.io/revision']}"
        for role in ROLES
        for pod in served.pods(role)
    )


@pytest.mark.parametrize(
    ("kills", "chunk"), [(4, 64), pytest.param(20, 96, marks=pytest.mark.soak)]
)
def test_a_rollout_whose_operator_is_killed_again_and_again(
    served: Serving, tmp_path: Path, kills: int, chunk: int
) -> None:
    before, log, killer = shape(served), tmp_path / "pods.json", Killer(served.cluster)
    old = {pod["metadata"]["uid"] for role in ROLES for pod in served.pods(role)}
    questions = known(served, at_least=4)
    with (
        crowd(served.url, questions, clients=2, seconds=600, rest=REST) as clients,
        watched(served, log),
    ):
        clients.goes_on()
        began = time.monotonic()
        served.apply(
            engine={**served.object["spec"]["engine"], "chunkSize": chunk},
            rollout={**served.object["spec"]["rollout"], "minReadySeconds": int(STEADY * kills)},
        )
        for _ in range(kills):
            killer.kill()
        assert served.conditions()["Progressing"]["status"] == "True", "it ended before"
        served.settled(300)
        seconds = time.monotonic() - began
        clients.goes_on()
    assert not clients.troubles

    audit = Audit()
    for kind, pod in events(log):
        audit.see(kind, pod)
    new = {uid: name for uid, name in audit.made.items() if uid not in old}
    print(
        f"{kills} kills in {killer.moments[-1] - killer.moments[0]:.0f} s of a rollout of "
        f"{seconds:.0f} s; {len(clients.outcomes)} requests, none failed"
    )
    print(f"  groups at most {dict(audit.most)}, ready at least {audit.least} as one was taken out")
    assert audit.taken == 2 * GROUPS
    assert max(audit.most.values()) <= GROUPS + SURGE
    assert min(audit.least.values()) >= GROUPS - UNAVAILABLE
    assert len(new) == 2 * GROUPS, new  # each group was made once, and none failed

    found = served.get()["status"]
    revision = found["targetRevision"].removeprefix(f"{served.name}-")
    assert found["currentRevision"] == found["targetRevision"]
    assert revisions(served) == {f"{role} {revision}": GROUPS for role in ROLES}
    assert {uid for role in ROLES for uid in uids(served, role)} == set(new)
    history = Counter(
        {f"configmap/{served.name}-#": 1, f"controllerrevision.apps/{served.name}-#": 1}
    )
    assert shape(served) == before + history


def uids(served: Serving, role: str) -> list[str]:
    return [str(pod["metadata"]["uid"]) for pod in served.pods(role)]
