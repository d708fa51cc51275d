"""Which groups leave, of those that are too many."""

import pytest
from pds_operator.decide.counting import CountingBasis, counts, must_serve_on, retired
from pds_operator.decide.fleet import groups
from pds_operator.decide.rollout import Move, Role, RolloutLimits, Step
from pds_operator.decide.round import Round
from pds_operator.decide.target import Target
from pds_operator.facts.observed import LeaderState, Observed, Pod, Revision
from worlds import desired, raw_spec

ONE_DECODE = Step(0, 1, {"decode": Move(retire_old=1)})
ONE_EACH = Step(0, 2, {"prefill": Move(retire_old=1), "decode": Move(retire_old=1)})


def pod(role: str, index: int, revision: str, *, ready: bool = True) -> Pod:
    """One that runs, and has an open gate."""
    runs = {"phase": "Running", "started": True, "containers_ready": True, "ready": ready}
    runs["routable"] = True
    name = f"chat-{role[0]}-{index}-0-0"
    return Pod(name, name, role, index, 0, 0, revision, 0.0, **runs)


def leaves(*pods: Pod, basis: CountingBasis) -> list[str]:
    found = retired(groups(pods, lambda *_: 1), ONE_DECODE, basis, serves_on=False)
    return [group.revision for group in found]


@pytest.mark.parametrize(("kept", "lost"), [("a", "b"), ("b", "a")])
def test_what_no_pod_can_join_any_more_leaves_first(kept, lost):
    """Its partner is still to come: no pair of either is ready."""
    both = [pod("decode", 0, lost), pod("decode", 1, kept), pod("prefill", 0, kept, ready=False)]
    assert leaves(*both, basis=CountingBasis("new", lost=frozenset({lost}))) == [lost]


@pytest.mark.parametrize(("kept", "other"), [("a", "b"), ("b", "a")])
def test_what_served_last_stays_longest(kept, other):
    both = [pod("decode", 0, kept), pod("decode", 1, other)]
    good = Revision(kept, 1, "", {}, "", 0.0)
    target = Target(Revision("new", 2, "", {}, "", 1.0), 1.0, good)
    assert leaves(*both, basis=CountingBasis("new", target)) == [other]


def test_a_pair_that_serves_stays_whatever_was_lost():
    serving = [pod("prefill", 0, "a"), pod("decode", 0, "a")]
    assert leaves(
        *serving, pod("decode", 1, "b"), basis=CountingBasis("new", lost=frozenset("a"))
    ) == ["b"]


def test_what_pairs_stays_where_others_are_ready_too():
    """Of two revisions one sees two models: only groups of both of them pair."""
    pods = [pod("prefill", 0, "f"), pod("prefill", 1, "3"), pod("decode", 0, "5")]
    pods.append(pod("decode", 2, "f"))
    fingerprints = {"chat-p-0-0-0": "other", "chat-p-1-0-0": "one", "chat-d-0-0-0": "one"}
    states = {name: LeaderState(fingerprint=model) for name, model in fingerprints.items()}
    states["chat-d-2-0-0"] = LeaderState(fingerprint="third")
    basis = CountingBasis("new", states=states)
    found = retired(groups(pods, lambda *_: 1), ONE_EACH, basis, serves_on=True)
    assert {(group.role, group.index) for group in found} == {("prefill", 0), ("decode", 2)}


@pytest.mark.parametrize("serves_on", [True, False])
def test_the_last_pair_stays_while_the_service_must(serves_on):
    pods = [pod("prefill", 0, "a"), pod("decode", 0, "a")]
    found = retired(groups(pods, lambda *_: 1), ONE_EACH, CountingBasis("new"), serves_on=serves_on)
    assert len(found) == (0 if serves_on else 2)


def test_what_may_pair_soon_stays_before_what_is_ready_and_never_will():
    """The gate of the one is open, and its partner waits; the other's revision does not pair."""
    pods = [pod("prefill", 0, "a"), pod("decode", 0, "a", ready=False), pod("decode", 1, "b")]
    fingerprints = {"chat-p-0-0-0": "one", "chat-d-1-0-0": "other"}
    states = {name: LeaderState(fingerprint=model) for name, model in fingerprints.items()}
    target = Target(Revision("new", 2, "", {}, "", 1.0), 1.0, Revision("a", 1, "", {}, "", 0.0))
    assert leaves(*pods, basis=CountingBasis("new", target, states=states)) == ["b"]


def test_a_new_group_counts_once_it_has_reported_what_it_pairs_with():
    pods = [
        pod(role, index, rev) for index, rev in enumerate("ab") for role in ("prefill", "decode")
    ]
    states = {each.name: LeaderState(fingerprint="one") for each in pods}
    asked = desired(raw_spec(prefill={"replicas": 1}, decode={"replicas": 1}))
    fleet = groups(pods, lambda *_: 1)
    both = counts(
        Round(Observed(), asked, 9.0, tuple(fleet)), asked, CountingBasis("b", states=states)
    )
    assert {role.new_ready for role in both.values()} == {1}
    late = {name: state for name, state in states.items() if name != "chat-d-1-0-0"}
    one = counts(
        Round(Observed(), asked, 9.0, tuple(fleet)), asked, CountingBasis("b", states=late)
    )
    assert {role.new_ready for role in one.values()} == {0}


@pytest.mark.parametrize(
    ("roles", "limits", "expected"),
    [
        ({"prefill": 1, "decode": 1}, RolloutLimits(), True),
        ({"prefill": 1, "decode": 1}, RolloutLimits(0, 1), False),
        ({"prefill": 2, "decode": 2}, RolloutLimits(0, 1), True),
        ({"prefill": 2, "decode": 0}, RolloutLimits(), False),
        ({"unified": 2, "prefill": 0, "decode": 0}, RolloutLimits(), True),
        ({"prefill": 2, "decode": 2}, RolloutLimits("10%", "10%"), True),
    ],
)
def test_whether_a_rollout_may_interrupt_the_service(roles, limits, expected):
    assert must_serve_on({name: Role(want) for name, want in roles.items()}, limits) is expected
