"""What the router reads of Pods, and the groups that they make (pure)."""

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from pds_engine.router.backends import Found

LABEL = "pdserving.io/"
HTTP_PORT = 8000
ENDED = frozenset({"Failed", "Succeeded"})


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    uid: str = ""
    labels: dict[str, str] = {}
    resource_version: str = ""
    deletion_timestamp: str | None = None


class Condition(msgspec.Struct, frozen=True):
    type: str
    status: str


class Status(msgspec.Struct, frozen=True, rename="camel"):
    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    conditions: list[Condition] = []


class Pod(msgspec.Struct, frozen=True):
    """The few fields of a Pod that decide about routing."""

    metadata: Meta
    status: Status = Status()

    def label(self, name: str) -> str:
        return self.metadata.labels.get(LABEL + name, "")

    @property
    def leads(self) -> bool:
        return self.label("rank-pod") == "0"

    @property
    def ready(self) -> bool:
        return any(
            c.type == "ContainersReady" and c.status == "True" for c in self.status.conditions
        )


GroupKey = tuple[str, str, str]
"""Role, index and attempt: what the pods of one group share."""


def group_of(pod: Pod) -> GroupKey:
    return pod.label("role"), pod.label("group"), pod.label("attempt")


def found(pods: Iterable[Pod]) -> list[Found]:
    """The groups whose leader has an address, by the UID of the leader pod."""
    groups: dict[GroupKey, list[Pod]] = defaultdict(list)
    for pod in pods:
        groups[group_of(pod)].append(pod)
    all_found = []
    for members in groups.values():
        for leader in members:
            if leader.leads and leader.status.pod_ip:
                all_found.append(_found(leader, members))
    return sorted(all_found, key=lambda each: each.key)


def ended_groups(pods: Iterable[Pod]) -> set[GroupKey]:
    """Groups whose pods have all ended, though some are still listed."""
    running: dict[GroupKey, bool] = {}
    for pod in pods:
        key = group_of(pod)
        running[key] = running.get(key, False) or pod.status.phase not in ENDED
    return {key for key, runs in running.items() if not runs}


def _found(leader: Pod, members: list[Pod]) -> Found:
    return Found(
        key=leader.metadata.uid,
        pod=leader.metadata.name,
        group=leader.metadata.name.rpartition("-")[0],
        host=leader.status.pod_ip,
        port=HTTP_PORT,
        ready=leader.ready and not any(pod.status.phase in ENDED for pod in members),
        deleting=any(pod.metadata.deletion_timestamp for pod in members),
        draining=any(pod.label("draining") not in ("", "false") for pod in members),
    )
