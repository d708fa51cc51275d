"""Times that nodes write, whatever their clocks say; and the API server's, which is ours."""

import dataclasses
from email.utils import formatdate

import pytest
from pds_operator.decide.fleet import groups
from pds_operator.facts import clocks
from pds_operator.facts.observed import LeaderState, RouterView, rfc3339
from pds_operator.facts.reading import pod_facts
from pds_operator.run.server_clock import ServerClock

MADE = 1_700_000_000
"""By the API server."""


def written(manager, at, subresource="status"):
    entry = {"manager": manager, "operation": "Update", "time": rfc3339(at)}
    return {**entry, "subresource": subresource} if subresource else entry


def pod(*writes, **status):
    labels = {
        "name": "chat",
        "role": "prefill",
        "group": "0",
        "attempt": "0",
        "rank-pod": "0",
        "revision": "r",
    }
    return {
        "metadata": {
            "name": "chat-p-0-0-0",
            "uid": "u",
            "creationTimestamp": rfc3339(MADE),
            "managedFields": [written("pds-operator", MADE, ""), *writes],
            "labels": {f"pdserving.io/{key}": value for key, value in labels.items()},
        },
        "status": {"phase": "Running", **status},
    }


def failed(at, *writes):
    ended = {"exitCode": 1, "finishedAt": rfc3339(at)}
    status = [{"name": "engine", "state": {"terminated": ended}}]
    facts = pod_facts(pod(*writes, containerStatuses=status, phase="Failed"))
    [group] = groups([facts], lambda *_: 1)
    return group


def ready(at, *writes):
    since = {"lastTransitionTime": rfc3339(at)}
    conditions = [
        {"type": kind, "status": "True", **since} for kind in ("Ready", "ContainersReady")
    ]
    status = [{"name": "engine", "started": True}]
    facts = pod_facts(pod(*writes, conditions=conditions, containerStatuses=status))
    [group] = groups([facts], lambda *_: 1)
    return group


@pytest.mark.parametrize("skew", [0, 900, -900, 86_400, -86_400])
def test_a_replacement_waits_for_its_backoff_and_no_clock(skew):
    end = MADE + 40
    group = failed(end + skew, written("kubelet", end + 1))
    group = dataclasses.replace(group, pods=(dataclasses.replace(group.pods[0], failures=2),))
    assert group.next_failures() == 3
    assert end + 20 <= group.retry_at() <= end + 21


@pytest.mark.parametrize("skew", [0, 900, 86_400, -86_400])
def test_an_attempt_that_was_steady_starts_the_count_anew_and_a_crash_loop_does_not(skew):
    for lived, failures in ((1200, 1), (40, 3)):
        end = MADE + lived
        group = failed(end + skew, written("kubelet", end))
        group = dataclasses.replace(group, pods=(dataclasses.replace(group.pods[0], failures=2),))
        assert group.next_failures() == failures


@pytest.mark.parametrize("skew", [0, 900, -900])
def test_a_group_is_ready_for_as_long_as_it_is(skew):
    gate, up = MADE + 60, MADE + 61
    group = ready(up + skew, written("pds-operator", gate), written("kubelet", up))
    assert gate <= group.available_at(300) - 300 <= up
    # The kubelet writes again, for another reason.
    group = ready(up + skew, written("pds-operator", gate), written("kubelet", up + 200))
    assert gate <= group.available_at(300) - 300 <= up


def test_a_server_that_says_nothing_of_writes_is_no_reason_to_doubt():
    made = pod()
    del made["metadata"]["managedFields"]
    ended = {"exitCode": 1, "finishedAt": rfc3339(MADE + 900)}
    made["status"] = {"containerStatuses": [{"name": "engine", "state": {"terminated": ended}}]}
    assert pod_facts(made).failed_at == MADE + 900


@pytest.mark.parametrize(
    "entry", [{}, {"subresource": "status"}, written("k", MADE) | {"time": "x"}]
)
def test_odd_entries_of_managed_fields_are_passed_over(entry):
    assert clocks.status_window({"managedFields": [entry]}, 5.0) == clocks.StatusWindow(5.0, None)


class Time:
    def __init__(self, wall):
        self.monotonic, self.wall = 50.0, wall

    def of(self):
        return ServerClock(lambda: self.monotonic, lambda: self.wall)


def date(moment):
    return formatdate(moment, usegmt=True)


def test_our_time_is_the_api_servers():
    time = Time(wall=MADE - 900)  # our node is behind
    clock = time.of()
    assert clock.now() == MADE - 900
    asked = clock.asked()
    time.monotonic += 0.2
    clock.heard(date(MADE + 0.9), asked)
    assert MADE <= clock.now() <= MADE + 1.2


def test_a_clock_that_agrees_is_left_alone():
    time = Time(wall=MADE)
    clock = time.of()
    for step in range(20):
        asked = clock.asked()
        time.monotonic += 0.3
        clock.heard(date(MADE + 0.3 * (step + 1)), asked)
    assert clock.now() == pytest.approx(MADE + 6)


@pytest.mark.parametrize("header", ["", "yesterday", "Sat, 21 Nov 20261 19:00:00 GMT"])
def test_a_date_that_cannot_be_read_is_passed_over(header):
    clock = Time(wall=MADE).of()
    clock.heard(header, clock.asked())
    assert clock.now() == MADE


def test_clocks_that_differ_are_reported_with_the_cure():
    states = {"chat-p-0-0-0": LeaderState(clock=75.0), "chat-d-0-0-0": LeaderState(clock=1.0)}
    views = [RouterView("r", {}, clocks={"chat-d-0-0-0": -3000.0})]
    assert clocks.skew(states, views, {"chat-p-0-0-0": "node-a"}) == (
        "the clock of pod chat-d-0-0-0 is more than 1500 s behind; "
        "the clock of pod chat-p-0-0-0 on node node-a is more than 40 s ahead: "
        "set the clocks of the nodes (NTP)"
    )
    assert clocks.skew({"a": LeaderState()}, [RouterView("r", {})], {}) == ""


def test_a_difference_is_reported_in_the_same_words_each_time_it_is_measured():
    messages = {clocks.skew({"a": LeaderState(clock=900 + n / 7)}, (), {}) for n in range(-7, 8)}
    assert len(messages) == 1
