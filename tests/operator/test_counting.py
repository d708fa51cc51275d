"""Which groups leave, of those that are too many."""

import pytest
from pds_operator.counting import Frame, retired
from pds_operator.fleet import groups
from pds_operator.observed import Pod, Revision
from pds_operator.rollout import Move, Step
from pds_operator.target import Target

ONE_DECODE = Step(0, 1, {"decode": Move(retire_old=1)})


def pod(role: str, index: int, revision: str, *, ready: bool = True) -> Pod:
    runs = {"phase": "Running", "started": True, "containers_ready": True, "ready": ready}
    name = f"chat-{role[0]}-{index}-0-0"
    return Pod(name, name, role, index, 0, 0, revision, 0.0, **runs)


def leaves(*pods: Pod, frame: Frame) -> list[str]:
    found = retired(groups(pods, lambda *_: 1), ONE_DECODE, frame)
    return [group.revision for group in found]


@pytest.mark.parametrize(("kept", "lost"), [("a", "b"), ("b", "a")])
def test_what_no_pod_can_join_any_more_leaves_first(kept, lost):
    """Its partner is still to come: no pair of either is ready."""
    both = [pod("decode", 0, lost), pod("decode", 1, kept), pod("prefill", 0, kept, ready=False)]
    assert leaves(*both, frame=Frame("new", lost=frozenset({lost}))) == [lost]


@pytest.mark.parametrize(("kept", "other"), [("a", "b"), ("b", "a")])
def test_what_served_last_stays_longest(kept, other):
    both = [pod("decode", 0, kept), pod("decode", 1, other)]
    good = Revision(kept, 1, "", {}, "", 0.0)
    target = Target(Revision("new", 2, "", {}, "", 1.0), 1.0, good)
    assert leaves(*both, frame=Frame("new", target)) == [other]


def test_a_pair_that_serves_stays_whatever_was_lost():
    serving = [pod("prefill", 0, "a"), pod("decode", 0, "a")]
    assert leaves(*serving, pod("decode", 1, "b"), frame=Frame("new", lost=frozenset("a"))) == ["b"]
