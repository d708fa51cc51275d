"""The release before this one is upgraded to it under load: first the operator, then the engines.

For a while new routers send to old engines, and prefill and decode groups of both releases pair
where they may. Clients stream from before the first upgrade until after the last.
"""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import predecessor
import pytest
from pds_cluster import testing
from serving import Object, Serving, manifest, serving_uids
from streams import REST, LoadPhase, StreamOutcome, crowd, known
from watching import DEBUG, ROLES, Watch, watching

pytestmark = pytest.mark.cluster

STARTED = 300.0
ROLLED = 300.0
"""Seconds for routers to be replaced, and for engines."""
TOGETHER = 900
"""minReadySeconds, until both releases' groups were seen to work together: the old ones stay."""
OLD_CODE = "PYTHONPATH"
"""A pod of the release before has it in its environment."""


@dataclass(frozen=True)
class SkewStory:
    """What clients got, what the watch saw, and the engines before and after the operator's."""

    commit: str
    outcomes: list[StreamOutcome]
    watch: Watch
    phases: list[LoadPhase]
    engines: list[set[str]]
    """Their uids: with the old operator, with the new one, and at the end."""


def is_old(pod: Object) -> bool:
    containers = pod["spec"]["containers"]
    return any(item["name"] == OLD_CODE for item in containers[0].get("env", ()))


def routers_are_new(serving: Serving) -> bool:
    """No old one is left, not even one that still ends its streams."""
    pods = serving.pods("router")
    return bool(pods) and not any(is_old(pod) for pod in pods)


def attempts(watch: Watch) -> Counter[tuple[bool, bool]]:
    """By whether the prefill group is old, and the decode group."""
    pods = watch.pods
    return Counter((is_old(pods[at.prefill]), is_old(pods[at.decode])) for at in watch.attempts())


def alike(watch: Watch) -> bool | None:
    """Whether pages and messages of both releases are alike; None until both are known."""
    found = {
        is_old(watch.pods[uid]): (state["kv_fingerprint"], state.get("protocol", 1))
        for uid, state in list(watch.states.items())
    }
    return found[True] == found[False] if len(found) == 2 else None


def paired(watch: Watch) -> bool:
    """Whether new groups have worked with new ones, and with old ones where they may."""
    may, seen = alike(watch), attempts(watch)
    wanted = [(False, False), *([(True, False), (False, True)] if may else [])]
    return may is not None and all(seen[pair] for pair in wanted)


@pytest.fixture(scope="module")
def before(cluster: testing.Cluster) -> Iterator[str]:
    """The release before is installed; this one is again afterwards."""
    if not cluster.is_local:
        pytest.skip("both releases run from the working tree, which only the local cluster mounts")
    commit = predecessor.find()
    try:
        with predecessor.checked_out(commit) as place:
            testing.install(cluster, place)
            yield commit
    finally:
        testing.install(cluster)


@pytest.fixture(scope="module")
def story(before: str, cluster: testing.Cluster, namespace: str) -> SkewStory:
    router = {"replicas": 1, "podTemplate": DEBUG, "resources": {"requests": {"cpu": "50m"}}}
    rollout = {"drainSeconds": 30}
    serving = Serving(cluster, namespace, manifest("skew", router=router, rollout=rollout))
    serving.apply()
    serving.settled(STARTED)
    assert all(is_old(pod) for role in (*ROLES, "router") for pod in serving.pods(role))
    asked, phases, seen = known(serving, at_least=6), [], [serving_uids(serving)]
    with (
        watching(serving) as watch,
        crowd(
            serving.url, asked, clients=3, at_most=5000, seconds=4 * ROLLED, rest=REST
        ) as clients,
    ):
        clients.goes_on()
        began = time.monotonic()
        testing.install(cluster)
        serving.until("new routers alone", lambda: routers_are_new(serving), ROLLED)
        serving.settled(ROLLED)
        clients.goes_on()
        phases.append(LoadPhase("operator and routers", began, time.monotonic()))
        seen.append(serving_uids(serving))
        began = time.monotonic()
        serving.apply(rollout={**rollout, "minReadySeconds": TOGETHER})
        serving.pds("restart")
        serving.until("paired both ways, where they may", lambda: paired(watch), ROLLED)
        serving.apply(rollout={**rollout, "minReadySeconds": 0})
        watch.settled(ROLLED)
        clients.goes_on()
        phases.append(LoadPhase("engines", began, time.monotonic()))
        seen.append(serving_uids(serving))
    return SkewStory(before, clients.outcomes, watch, phases, seen)


def test_no_request_fails_and_no_answer_is_wrong(story: SkewStory) -> None:
    print(f"from {story.commit[:10]}")
    for phase in story.phases:
        print(phase.summary(story.outcomes))
    assert [each.trouble for each in story.outcomes if each.trouble] == []
    assert all(phase.of(story.outcomes) for phase in story.phases)


def test_a_new_operator_replaces_no_engine(story: SkewStory) -> None:
    assert story.engines[0] == story.engines[1]
    assert not story.engines[0] & story.engines[2]
    pods = story.watch.pods
    assert {is_old(pods[uid]) for uid in story.engines[0]} == {True}
    assert {is_old(pods[uid]) for uid in story.engines[2]} == {False}


def test_old_and_new_groups_pair_both_ways_where_they_may(story: SkewStory) -> None:
    seen, may = attempts(story.watch), alike(story.watch)
    print(f"attempts by (old prefill, old decode): {dict(seen)}; pages alike: {may}")
    assert seen[True, True]
    assert seen[False, False]
    assert (bool(seen[True, False]), bool(seen[False, True])) == (may, may)


def test_both_floors_hold_at_every_event(story: SkewStory) -> None:
    assert all(min(each.ready for each in story.watch.events(role)) >= 1 for role in ROLES)
