"""Faults while requests run: a clear end for clients, nothing held, and a group that comes back."""

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass

import httpx
import pytest
from pds_cluster.errors import ClusterError
from pds_cluster.testing import Cluster
from serving import Serving, manifest
from streams import REST, Body, StreamOutcome, ask, crowd, data_of, known, opened, text_of
from workers import BACK, LONG, PodProcess, WorkerProcess, amid_prefill, comes_back, leader

pytestmark = pytest.mark.cluster

LEASE = 30.0
"""Seconds after which a hand-over ends because nobody renews it. What is asserted of times here is
that nothing waits for it; how quick it is otherwise is printed, as it depends on the machine."""
KNOWN_WITHIN = LEASE / 2
"""A client hears that what answered it is dead."""
ANSWERED = LEASE - 5
"""Another group has answered in its place, from the beginning."""
FREED = LEASE - 10
"""No page is held for a request that has ended."""
ON_ITS_WAY = 3.0
"""Seconds after which nothing comes any more that a killed process had sent."""
UNREADY = 7.0
"""A router that hangs is left out: 5 s by its probe, and what the news takes."""
RESTARTED = 20.0
"""And started again."""
PATIENCE = 4.0
"""Seconds after which the impatient client of one test leaves."""

TALKATIVE: Body = {
    "prompt": list(range(16, 216)),
    "max_tokens": 1800,
    "ignore_eos": True,
    "skip_special_tokens": False,  # an event for every token
}
OWNED = (
    "pods,services,configmaps,secrets,poddisruptionbudgets,deployments,replicasets,endpointslices,"
    "controllerrevisions.apps,networkpolicies,serviceaccounts,rolebindings,persistentvolumeclaims"
)


@dataclass(frozen=True)
class ServedPlace:
    """A serving, and what its namespace held before it."""

    serving: Serving
    before: frozenset[str]

    def objects(self) -> frozenset[str]:
        words = ("-n", self.serving.namespace, "get", OWNED, "-o", "name")
        return frozenset(self.serving.cluster.kubectl(*words).split())


@pytest.fixture(scope="module")
def place(operator: Cluster, namespace: str) -> ServedPlace:
    operator.wait("sa/default", "jsonpath={.metadata.name}=default", namespace)
    spec = manifest("hurt")
    spec["spec"]["engine"]["prefixCache"] = False  # the long prompt is computed whole every time
    empty = ServedPlace(Serving(operator, namespace, spec), frozenset())
    return ServedPlace(empty.serving, empty.objects())


@pytest.fixture(scope="module")
def served(place: ServedPlace) -> Serving:
    place.serving.apply()
    place.serving.settled()
    return place.serving


def leaves(asked: Future[StreamOutcome]) -> None:
    """Until the client has had enough."""
    wait([asked])


def free(serving: Serving) -> bool:
    """Nothing runs and nothing is held, on both sides; each leader answers."""
    held = ("in_flight", "transfers_in_flight", "kv_used", "kv_quarantined")
    with suppress(OSError):
        states = [*serving.states("prefill"), *serving.states("decode")]
        return not any(state[key] for state in states for key in held)
    return False


def freed(serving: Serving, since: float, bound: float = FREED) -> float:
    serving.until("free of pages", lambda: free(serving), bound)
    return time.monotonic() - since


def assert_answers(serving: Serving, client: httpx.Client) -> None:
    got = ask(serving.url, {**LONG, "max_tokens": 4}, client=client)
    assert not got.trouble
    serving.until("free of pages", lambda: free(serving), FREED)


def decode_is_free(serving: Serving) -> bool:
    (state,) = serving.states("decode")
    return not (state["in_flight"] or state["kv_used"] or state["kv_quarantined"])


def test_a_killed_prefill_worker_is_reported_and_made_again(
    served: Serving, client: httpx.Client
) -> None:
    killed: list[float] = []
    got = amid_prefill(
        served,
        leader(served, "prefill"),
        lambda: ask(served.url, LONG, client=client),
        lambda worker, _: killed.append(worker.kill()),
    )
    took = got.ended - killed[0]
    assert "HTTP 503" in got.error
    assert '"message"' in got.error
    assert took < KNOWN_WITHIN
    served.until("decode is free", lambda: decode_is_free(served), FREED)
    decode_freed = time.monotonic() - killed[0]
    back = comes_back(served, "prefill", 0, 1, killed[0])
    assert_answers(served, client)
    print(f"prefill killed: answered in {took:.2f} s: {got.error}")
    print(f"  decode free in {decode_freed:.1f} s, the group back in {back:.1f} s")


def test_another_prefill_group_answers_what_a_killed_one_had_begun(
    served: Serving, client: httpx.Client
) -> None:
    served.apply(prefill={**served.object["spec"]["prefill"], "replicas": 2})
    served.settled()
    right = ask(served.url, LONG, client=client)
    assert not right.trouble
    killed: list[float] = []
    with ThreadPoolExecutor(2) as pool:
        got: list[StreamOutcome] = []

        def two() -> StreamOutcome:
            """Both at once: the router gives each prefill group one of them."""
            got[:] = pool.map(lambda _: ask(served.url, LONG, client=client), range(2))
            return max(got, key=lambda outcome: outcome.ended)

        pod = leader(served, "prefill", 1)
        last = amid_prefill(served, pod, two, lambda worker, _: killed.append(worker.kill()))
    assert [outcome.error for outcome in got] == ["", ""]
    assert [outcome.text for outcome in got] == [right.text] * 2
    took = last.ended - killed[0]
    assert took < ANSWERED
    served.until("decode is free", lambda: decode_is_free(served), FREED)
    back = comes_back(served, "prefill", 1, 1, killed[0])
    served.until("free of pages", lambda: free(served), FREED)
    print(f"one of two prefill groups killed: answered in {took:.2f} s, back in {back:.1f} s")
    served.apply(prefill={**served.object["spec"]["prefill"], "replicas": 1})
    served.settled()


def test_a_client_that_leaves_holds_nothing(served: Serving, client: httpx.Client) -> None:
    with opened(served.url, TALKATIVE, client) as answer:
        events = data_of(answer)
        for _ in range(5):
            next(events)
        (decoding,) = served.states("decode")
        assert decoding["in_flight"] == 1
        assert decoding["kv_used"] > 0
    left = time.monotonic()
    seconds = freed(served, left)
    assert served.states("decode")[0]["steps_done"] < decoding["steps_done"] + 1000
    print(f"left in mid-stream: free in {seconds:.2f} s")
    assert_answers(served, client)


def test_a_client_that_leaves_in_mid_prefill_holds_nothing(
    served: Serving, client: httpx.Client
) -> None:
    got = amid_prefill(
        served,
        leader(served, "prefill"),
        lambda: ask(served.url, LONG, client=client, timeout=PATIENCE),
        lambda _, asked: leaves(asked),
    )
    assert got.error.startswith("ReadTimeout")
    seconds = freed(served, time.monotonic())
    print(f"left in mid-prefill: free in {seconds:.2f} s")
    assert_answers(served, client)


def test_a_stream_waits_for_its_killed_decode_worker(served: Serving, client: httpx.Client) -> None:
    """The only one: the stream goes on when its group is back."""
    body = {**TALKATIVE, "max_tokens": 500}
    right = ask(served.url, body, client=client)
    assert not right.trouble
    worker = WorkerProcess(leader(served, "decode"))
    with opened(served.url, body, client, timeout=BACK) as answer:
        events = data_of(answer)
        sent = [next(events) for _ in range(5)]
        killed = worker.kill()
        while len(sent) < 10 or time.monotonic() - killed < ON_ITS_WAY:
            sent.append(next(events))
        went_on = time.monotonic() - killed
        sent += events
    assert sent[-1] == "[DONE]"
    assert "".join(map(text_of, sent[:-1])) == right.text
    back = comes_back(served, "decode", 0, 1, killed)
    seconds = freed(served, killed)
    assert_answers(served, client)
    print(f"the only decode worker killed: its stream went on after {went_on:.1f} s;")
    print(f"  the group back in {back:.1f} s, all free in {seconds:.1f} s")


def test_a_hung_router_is_left_out_and_started_again(served: Serving, client: httpx.Client) -> None:
    """A stopped process answers nothing and does not end: its own connections stay open."""
    before = served.object["spec"]["router"]
    served.apply(router={**before, "replicas": 2})
    served.settled()
    served.until("two routers", lambda: served.get()["status"]["router"]["ready"] == 2, BACK)
    hung, other = served.pods("router")
    process, name = PodProcess(hung, "pds-router"), hung["metadata"]["name"]

    def container(field: str) -> int | bool:
        [pod] = [pod for pod in served.pods("router") if pod["metadata"]["name"] == name]
        value: int | bool = pod["status"]["containerStatuses"][0][field]
        return value

    restarts = container("restartCount")
    process.stop()
    stopped = time.monotonic()
    try:
        served.until("unready", lambda: not container("ready"), UNREADY)
        unready = time.monotonic() - stopped
        assert_answers(served, client)  # by the other one
        served.until("restarted", lambda: container("restartCount") > restarts, RESTARTED - unready)
        restarted = time.monotonic() - stopped
        served.until("ready again", lambda: container("ready"), BACK)
    finally:
        process.go_on()
    pods = {pod["metadata"]["name"] for pod in served.pods("router")}
    assert {name, other["metadata"]["name"]} == pods
    served.apply(router=before)
    served.settled()
    print(f"router stopped: unready in {unready:.1f} s, started again in {restarted:.1f} s")


def test_clients_do_not_notice_that_the_operator_is_gone(served: Serving) -> None:
    here = ("-n", "pds-system")
    mine = "app.kubernetes.io/name=pdserving"
    before = {role: leader(served, role)["metadata"]["uid"] for role in ("prefill", "decode")}
    questions = known(served, at_least=4)
    with crowd(served.url, questions, clients=2, rest=REST) as clients:
        clients.goes_on()
        pods = served.cluster.kubectl(*here, "get", "pods", "-l", mine, "-o", "name").split()
        deleted = time.monotonic()
        served.cluster.kubectl(*here, "delete", *pods)
        clients.goes_on()
        after = {role: leader(served, role)["metadata"]["uid"] for role in ("prefill", "decode")}
        assert after == before
        served.apply(prefill={**served.object["spec"]["prefill"], "replicas": 2})
        served.settled()
        resumed = time.monotonic() - deleted
        clients.goes_on()
    assert not clients.troubles
    print(f"operator deleted: {len(clients.outcomes)} requests, none failed; it had made another")
    print(f"  group {resumed:.1f} s after that")


def test_a_deleted_pdserving_leaves_nothing(place: ServedPlace, served: Serving) -> None:
    """The last one here."""
    there = place.objects() - place.before
    kinds = {name.partition("/")[0] for name in there}
    assert {"pod", "service", "configmap", "secret", "poddisruptionbudget.policy"} <= kinds
    began = time.monotonic()
    served.cluster.kubectl("-n", served.namespace, "delete", "pds", served.name)
    deadline = began + 60
    while left := place.objects() - place.before:
        assert time.monotonic() < deadline, left
    print(f"deleted: {len(there)} objects gone in {time.monotonic() - began:.1f} s")
    with pytest.raises(ClusterError):
        served.get()
