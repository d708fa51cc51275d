"""Ten minutes under load in which groups are deleted at random; no client notices."""

import random
import time
from functools import partial

import pytest
from pds_cluster.testing import Cluster
from serving import Serving, is_settled, manifest
from streams import REST, crowd, known
from watching import ROLES
from workers import is_ready, newest

pytestmark = [pytest.mark.cluster, pytest.mark.soak]

MINUTES = 10
EVERY = 30.0
"""Seconds from one deletion to the next, once all groups are ready again."""
PATIENCE = 240.0
SEED = 11


@pytest.fixture(scope="module")
def serving(operator: Cluster, namespace: str) -> Serving:
    found = Serving(operator, namespace, manifest("long"))
    found.sized(prefill=2, decode=2)
    return found


def test_no_request_fails_while_groups_are_deleted(serving: Serving) -> None:
    drawn, deleted = random.Random(SEED), 0
    until = time.monotonic() + 60 * MINUTES
    questions = known(serving, at_least=8)
    with crowd(
        serving.url,
        questions,
        clients=3,
        at_most=20_000,
        seconds=60 * MINUTES + PATIENCE,
        rest=REST,
    ) as clients:
        while time.monotonic() < until:
            began = time.monotonic()
            role, group = drawn.choice(ROLES), drawn.choice((0, 1))
            pods = [pod["metadata"]["name"] for pod in newest(serving, role, group)]
            words = ("-n", serving.namespace, "delete", "pod", *pods, "--wait=false")
            serving.cluster.kubectl(*words)
            deleted += 1
            serving.until("whole", partial(_whole, serving, role, group, pods), PATIENCE)
            time.sleep(max(0.0, EVERY - (time.monotonic() - began)))
        clients.goes_on()
    troubles = [each.trouble for each in clients.outcomes if each.trouble]
    print(f"{MINUTES} minutes, {deleted} groups deleted: {len(clients.outcomes)} requests,")
    print(f"  {len(troubles)} failed")
    assert troubles == []
    assert deleted >= MINUTES


def _whole(serving: Serving, role: str, group: int, deleted: list[str]) -> bool:
    """All are ready, the successor of what was deleted too: a status may be older than that."""
    successor = newest(serving, role, group)[0]
    if successor["metadata"]["name"] in deleted or not is_ready(successor):
        return False
    found = serving.get()
    ready = [found["status"][role]["ready"] for role in ROLES]
    return ready == [2, 2] and is_settled(found)
