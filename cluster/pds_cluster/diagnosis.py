"""What a failed test's namespaces hold: conditions, Events, and the last words of every pod.

It is read where nobody can look any more, in CI's log. So it is bounded, and it never fails itself:
what kubectl has against a question stands in place of the answer.
"""

import json
from collections.abc import Iterator
from typing import Any, Protocol

from pds_cluster.errors import ClusterError

Object = dict[str, Any]

EVENTS = 40
"""The newest ones."""
LINES = 40
"""Of the log of each container, and as many of the container before it."""
WIDTH = 300
"""Characters of a line."""
MOST = 120_000
"""Characters of it all: some 1,500 lines. Pods that are not Ready come first."""
PATIENCE = 20.0
"""Seconds for each question to the API server."""


class Kubectl(Protocol):
    """Of `testing.Cluster`, what is needed here."""

    def kubectl(self, *words: str, timeout: float = ...) -> str: ...


def report(cluster: Kubectl, namespace: str) -> str:
    """All there is to say of `namespace`, in at most MOST characters."""
    lines: list[str] = []
    left = MOST
    for line in _all(cluster, namespace):
        short = line if len(line) <= WIDTH else f"{line[:WIDTH]} …"
        left -= len(short) + 1
        if left < 0:
            return "\n".join([*lines, f"… and more: cut off at {MOST} characters"])
        lines.append(short)
    return "\n".join(lines)


def _all(cluster: Kubectl, namespace: str) -> Iterator[str]:
    yield from _conditions(cluster, namespace)
    yield from _events(cluster, namespace)
    pods = _listed(cluster, namespace, "pods")
    if isinstance(pods, str):
        yield pods
        return
    for pod in sorted(pods, key=_is_ready):
        yield from _pod(cluster, namespace, pod)


def _conditions(cluster: Kubectl, namespace: str) -> Iterator[str]:
    found = _listed(cluster, namespace, "pdservings.pdserving.io")
    if isinstance(found, str):
        yield found
        return
    for item in found:
        meta, status = item["metadata"], item.get("status", {})
        seen = status.get("observedGeneration")
        yield f"pdserving/{meta['name']}: generation {meta.get('generation')}, observed {seen}"
        for condition in status.get("conditions", []):
            yield _sentence(condition["type"], condition["status"], condition)


def _sentence(name: str, value: str, why: Object) -> str:
    return f"  {name}={value} {why.get('reason', '')}: {_one_line(why.get('message'))}"


def _events(cluster: Kubectl, namespace: str) -> Iterator[str]:
    found = _listed(cluster, namespace, "events")
    if isinstance(found, str):
        yield found
        return
    newest = sorted(found, key=_when)[-EVENTS:]
    yield f"events: {len(newest)} of {len(found)}"
    for item in newest:
        about = item.get("involvedObject", {})
        yield (
            f"  {_when(item)} {about.get('kind')}/{about.get('name')} {item.get('type')} "
            f"{item.get('reason')}: {_one_line(item.get('message'))}"
        )


def _when(event: Object) -> str:
    """When it was last seen; ISO times sort as text."""
    seen = event.get("lastTimestamp") or event.get("eventTime")
    return str(seen or event["metadata"].get("creationTimestamp"))


def _pod(cluster: Kubectl, namespace: str, pod: Object) -> Iterator[str]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    leaves = ", being deleted" if "deletionTimestamp" in pod["metadata"] else ""
    yield f"pod/{name}: {status.get('phase')}{leaves}"
    for condition in status.get("conditions", []):
        if condition["status"] != "True":
            yield _sentence(condition["type"], condition["status"], condition)
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind, []):
            yield from _container(cluster, namespace, name, container)


def _container(cluster: Kubectl, namespace: str, pod: str, status: Object) -> Iterator[str]:
    name, restarts = status["name"], status.get("restartCount", 0)
    state = "; ".join(f"{key} {_one_line(json.dumps(v))}" for key, v in status["state"].items())
    yield f"  container {name}: {restarts} restarts, {state}"
    previous = ["--previous"] if restarts else []
    for which in [*previous, ""]:
        words = ("logs", pod, "-c", name, f"--tail={LINES}", *filter(None, [which]))
        yield f"  log of {name}{' before its restart' if which else ''}:"
        for line in _said(cluster, namespace, *words).splitlines()[-LINES:]:
            yield f"    {line}"


def _is_ready(pod: Object) -> bool:
    conditions = {c["type"]: c["status"] for c in pod.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True"


def _listed(cluster: Kubectl, namespace: str, kind: str) -> list[Object] | str:
    """The objects of that kind; a line where they cannot be had."""
    text = _said(cluster, namespace, "get", kind, "-o", "json")
    try:
        items: list[Object] = json.loads(text)["items"]
    except ValueError:
        return f"{kind}: {text}"
    return items


def _said(cluster: Kubectl, namespace: str, *words: str) -> str:
    try:
        return cluster.kubectl("-n", namespace, *words, timeout=PATIENCE)
    except ClusterError as error:
        return _one_line(str(error))


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
