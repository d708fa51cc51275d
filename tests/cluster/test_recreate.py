"""Deleted and applied again: at once, by force, and with all that runs left behind."""

import json

import pytest
from serving import Serving
from streams import REST, crowd, known

pytestmark = pytest.mark.cluster

AGAIN = 240
"""Seconds to be ready again: the pods of the one before end first, then engines start."""


@pytest.fixture(scope="module")
def serving(chat: Serving) -> Serving:
    chat.sized(prefill=1, decode=1)
    return chat


def uid(serving: Serving) -> str:
    return str(serving.get()["metadata"]["uid"])


def answers(serving: Serving) -> None:
    """Router and engines have the same keys."""
    question = known(serving, at_least=1)[0]
    with crowd(serving.url, [question], clients=1, at_most=1) as clients:
        clients.goes_on()
    assert not clients.troubles


def owners(serving: Serving) -> set[str]:
    """The uids of the controllers of what carries our labels and is not made by others for us."""
    kinds = (
        "pods,services,configmaps,secrets,serviceaccounts,rolebindings,deployments,"
        "controllerrevisions,poddisruptionbudgets,networkpolicies"
    )
    words = ("-n", serving.namespace, "get", kinds, "-o", "json")
    text = serving.cluster.kubectl(*words, "-l", f"pdserving.io/name={serving.name}")
    return {
        reference["uid"]
        for item in json.loads(text)["items"]
        for reference in item["metadata"].get("ownerReferences", [])
        if reference["kind"] == "PDServing"
    }


@pytest.mark.parametrize("times", [1, pytest.param(9, marks=pytest.mark.soak)])
def test_deleted_and_applied_at_once(serving: Serving, times: int) -> None:
    words = ("-n", serving.namespace, "delete", "pds", serving.name, "--wait=false")
    for turn in range(times):
        before = uid(serving)
        serving.cluster.kubectl(*words)
        anew(serving, before)
        print(f"turn {turn + 1} of {times}: ready")


def anew(serving: Serving, before: str) -> None:
    """Apply, and wait until all is of another object than `before` and answers."""
    serving.until("gone", lambda: gone(serving, before), 30)
    serving.apply()
    ready_again(serving, before)
    answers(serving)
    assert owners(serving) == {uid(serving)}


def ready_again(serving: Serving, before: str) -> None:
    serving.until("ready again", lambda: uid(serving) != before and settled(serving), AGAIN)


def gone(serving: Serving, before: str) -> bool:
    """An apply while the object is still there would be of the object that goes."""
    words = ("-n", serving.namespace, "get", "pds", serving.name, "-o", "json")
    text = serving.cluster.kubectl(*words, "--ignore-not-found")
    return not text or json.loads(text)["metadata"]["uid"] != before


def settled(serving: Serving) -> bool:
    conditions = serving.conditions()
    wanted = {"Ready": "True", "Progressing": "False", "Degraded": "False"}
    return {kind: conditions.get(kind, {}).get("status") for kind in wanted} == wanted


@pytest.mark.soak
def test_replaced_by_force(serving: Serving) -> None:
    before = uid(serving)
    text = json.dumps(serving.object)
    serving.cluster.kubectl("-n", serving.namespace, "replace", "--force", "-f", "-", stdin=text)
    ready_again(serving, before)
    answers(serving)
    assert owners(serving) == {uid(serving)}


def test_left_behind_and_adopted_under_load(serving: Serving) -> None:
    """`--cascade=orphan`: no pod is made again, and no request fails."""
    pods = {
        pod["metadata"]["name"]: pod["metadata"]["uid"]
        for role in ("prefill", "decode", "router")
        for pod in serving.pods(role)
    }
    before, questions = uid(serving), known(serving, at_least=6)
    words = ("delete", "pds", serving.name, "--cascade=orphan")
    with crowd(serving.url, questions, clients=4, seconds=300, rest=REST) as clients:
        clients.goes_on()
        serving.cluster.kubectl("-n", serving.namespace, *words)
        clients.goes_on()
        serving.apply()
        ready_again(serving, before)
        clients.goes_on()
    print(f"{len(clients.outcomes)} requests, {len(clients.troubles)} failed")
    assert not clients.troubles
    for role in ("prefill", "decode", "router"):
        for pod in serving.pods(role):
            assert pods[pod["metadata"]["name"]] == pod["metadata"]["uid"]
    serving.until("all is adopted", lambda: owners(serving) == {uid(serving)}, 60)
