"""Control keys are replaced under load and nobody notices: one is deleted, the next asked for.

Clients stream from before the first until after the last. Routers take new keys up while they run.
"""

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from pds_engine.artefacts.libraries import DENSE
from serving import Object, Serving, is_settled
from streams import REST, LoadPhase, StreamOutcome, crowd, known
from watching import ROLES, Watch, watching

pytestmark = pytest.mark.cluster

SETTLED = 600.0
"""Seconds for one rotation. The local kubelet takes up to 15 of them to bring a key to the routers,
others up to 90."""
NOTICED = 20.0
"""Seconds until a deleted Secret has been missed: 5, and a busy operator."""
LIBRARIES = len(DENSE)


@dataclass(frozen=True)
class PodKeys:
    """What one moment shows of them."""

    pods: set[str]
    """The ids that engine pods carry; the first key has none."""
    public: dict[str, str]
    """By name, the server.pub of each control Secret."""
    ring: set[str]
    """The files of the ring."""


@dataclass(frozen=True)
class RotationStory:
    """What clients got, what the watch saw, and the keys before, between and after."""

    outcomes: list[StreamOutcome]
    watch: Watch
    phases: list[LoadPhase]
    keys: list[PodKeys]
    routers: list[set[str]]
    """The uids of the routers' pods at the beginning and at the end."""


def secrets(serving: Serving) -> dict[str, dict[str, str]]:
    path = f"/api/v1/namespaces/{serving.namespace}/secrets"
    found = {}
    for item in serving.cluster.read(path)["items"]:
        if item["metadata"]["name"].startswith(f"{serving.name}-"):
            data = item.get("data") or {}
            found[item["metadata"]["name"]] = {
                file: base64.b64decode(text).decode() for file, text in data.items()
            }
    return found


def engine_pods(serving: Serving) -> list[Object]:
    return [pod for role in ROLES for pod in serving.pods(role)]


def key_of(pod: Object) -> str:
    return str(pod["metadata"]["labels"].get("pdserving.io/key", ""))


def keys(serving: Serving) -> PodKeys:
    found = secrets(serving)
    return PodKeys(
        {key_of(pod) for pod in engine_pods(serving)},
        {name: data["server.pub"] for name, data in found.items() if "server.pub" in data},
        set(found[f"{serving.name}-keyring"]),
    )


def rotated(name: str, watch: Watch, act: Callable[[], object]) -> LoadPhase:
    """Replace the keys; returns when no pod has the old one and nothing is left to do."""
    serving, began = watch.serving, time.monotonic()
    was = keys(serving)
    before = set(was.public)
    act()
    serving.until("another key", lambda: set(keys(serving).public) - before, NOTICED)

    def done() -> bool:
        now = keys(serving)
        gone = not before & set(now.public) and not was.pods & now.pods
        return gone and len(now.pods) == 1 and is_settled(serving.get())

    serving.until("all of it new", done, SETTLED)
    return LoadPhase(name, began, time.monotonic())


def router_pods(serving: Serving) -> set[str]:
    return {str(pod["metadata"]["uid"]) for pod in serving.pods("router")}


DELETED, ASKED = "deleted", "asked for"


@pytest.fixture(
    scope="module",
    params=[(DELETED,), pytest.param((DELETED, ASKED), marks=pytest.mark.soak)],
    ids=["ci", "soak"],
)
def story(compiled: Serving, request: pytest.FixtureRequest) -> RotationStory:
    serving = compiled
    serving.sized(prefill=1, decode=1)
    asked = known(serving, at_least=8)
    found, routers, phases = [keys(serving)], [router_pods(serving)], []
    [active] = found[0].public
    with (
        watching(serving) as watch,
        crowd(
            serving.url, asked, clients=4, at_most=5000, seconds=3 * SETTLED, rest=REST
        ) as clients,
    ):
        clients.goes_on()
        delete = ("-n", serving.namespace, "delete", "secret", active, "--wait=false")
        ways = {
            DELETED: lambda: serving.cluster.kubectl(*delete),
            ASKED: lambda: serving.pds("rotate-keys"),
        }
        for way in request.param:
            phases.append(rotated(way, watch, ways[way]))
            found.append(keys(serving))
        routers.append(router_pods(serving))
        clients.goes_on()
    return RotationStory(clients.outcomes, watch, phases, found, routers)


def test_no_request_fails_and_no_answer_is_wrong(story: RotationStory) -> None:
    for phase in story.phases:
        print(phase.summary(story.outcomes))
    assert [each.trouble for each in story.outcomes if each.trouble] == []
    assert all(len(phase.of(story.outcomes)) >= 4 for phase in story.phases)


def test_each_time_there_is_another_public_key_and_no_pod_has_the_old(
    story: RotationStory,
) -> None:
    public = [set(each.public.values()) for each in story.keys]
    each_time = len(story.phases) + 1
    assert [len(each) for each in public] == [1] * each_time
    assert len(set.union(*public)) == each_time
    ids = [each.pods for each in story.keys]
    assert [len(each) for each in ids] == [1] * each_time
    assert len(set.union(*ids)) == each_time
    for each, [key] in zip(story.keys[1:], ids[1:], strict=True):
        assert each.ring == {"hmac.key", f"{key}.key"}
        assert [name.endswith(f"-control-{key}") for name in each.public] == [True]


def test_no_pair_is_of_two_keys(story: RotationStory) -> None:
    pods = story.watch.pods
    pairs = [(key_of(pods[a.prefill]), key_of(pods[a.decode])) for a in story.watch.attempts()]
    assert [pair for pair in pairs if pair[0] != pair[1]] == []
    assert len(set(pairs)) == len(story.keys)


def test_engines_say_which_key_they_have(story: RotationStory) -> None:
    for uid, state in story.watch.states.items():
        own = key_of(story.watch.pods[uid])
        assert own in ("", state["key_id"])
    assert len({state["key_id"] for state in story.watch.states.values()}) == len(story.keys)


def test_nothing_is_compiled_again(story: RotationStory) -> None:
    assert story.watch.unproven() == {}
    new = [uid for uid, pod in story.watch.pods.items() if key_of(pod) in _later(story)]
    proofs = [story.watch.proof(uid) for uid in new]
    assert len(proofs) >= len(story.phases) * len(ROLES)
    assert {(proof["compiled"], proof["reused"]) for proof in proofs} == {(0, LIBRARIES)}


def test_no_router_begins_anew(story: RotationStory) -> None:
    assert story.routers[0] == story.routers[1]


def test_both_floors_hold_at_every_event(story: RotationStory) -> None:
    assert all(min(each.ready for each in story.watch.events(role)) >= 1 for role in ROLES)


def _later(story: RotationStory) -> set[str]:
    return set.union(*(each.pods for each in story.keys[1:]))
