"""What must be equal to pair, and what is said where it is not."""

import dataclasses

import pytest
from pds_operator.decide import pairs
from pds_operator.decide.fleet import groups
from pds_operator.facts.observed import LeaderState, Pod

P, D = "chat-p-0-0-0", "chat-d-0-0-0"
REPORTED = LeaderState(fingerprint="f" * 64, protocol=1, key_id="a" * 10)


def fleet(head: str = "", tail: str = ""):
    """A prefill and a decode group that are ready, and mount keys of these ids."""

    def pod(name: str, role: str, key: str) -> Pod:
        ready = {"started": True, "containers_ready": True, "ready": True, "phase": "Running"}
        return Pod(name, name, role, 0, 0, 0, "r", 0.0, key, **ready)

    return groups([pod(P, "prefill", head), pod(D, "decode", tail)], lambda *_: 1)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({}, ""),
        ({"fingerprint": ""}, ""),
        ({"key_id": ""}, ""),  # an engine of the release before
        ({"fingerprint": "e" * 64}, "decode group 0 has eeeeeeeeeeee; do all pods see the same"),
        ({"protocol": 2}, "decode group 0 has protocol 2; do all pods run the same image?"),
        ({"key_id": "b" * 10}, "decode group 0 has control key bbbbbbbbbb; was their Secret made"),
    ],
)
def test_what_must_be_equal_to_pair(other, says):
    states = {P: REPORTED, D: dataclasses.replace(REPORTED, **other)}
    both = fleet()
    assert pairs.serves(both, states) is not bool(says)
    assert len(pairs.matching(both, states)) == (0 if says else 2)
    assert says in pairs.mismatch(both, states, "r")
    assert bool(pairs.mismatch(both, states, "r")) is bool(says)
    assert pairs.serves(both, {P: REPORTED})


def test_groups_of_two_keys_are_no_pair_whether_they_say_so_or_not():
    assert not pairs.serves(fleet("", "b" * 10), {})
    assert pairs.serves(fleet("b" * 10, "b" * 10), {})
