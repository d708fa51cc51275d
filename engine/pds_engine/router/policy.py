"""Which groups serve a request (pure: the same arguments give the same groups).

A head is the group that gets the prompt: a prefill group that has a decode group of its
`terms`, or a unified group. A head's load is its own outstanding tokens and those of its best
partner, so that many prefill groups do not flood the one decode group that they can pair with.
"""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import gcd, lcm

from pds_engine.messages import Role
from pds_engine.router.config import Policy

AFFINITY_FACTOR = 1.25
AFFINITY_SLACK = 2048
"""A preferred group is passed over when its load is above factor × mean + slack tokens."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A routable group. `outstanding` counts the tokens of requests that this router sent there."""

    key: str
    role: Role
    kv: str
    outstanding: int = 0
    protocol: int = 1
    key_id: str = ""
    """Id of the control key that it holds."""


Terms = tuple[str, int, str]
"""KV fingerprint, protocol of the messages, id of the control key."""


def terms(group: Candidate) -> Terms:
    """What must be equal in a prefill and a decode group, so that they can work as a pair.

    The format of the KV that is handed over, the protocol of the messages about it, and the control
    key by which each proves to the other that it belongs there.
    """
    return group.kv, group.protocol, group.key_id


@dataclass(frozen=True, slots=True)
class Pick:
    """Keys of the chosen groups; no `decode`: the unified group `prefill` does it all."""

    prefill: str
    decode: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """What a choice may depend on besides the groups.

    `turn` counts the choices made so far; `affinity` is what requests that belong together share.
    """

    policy: Policy = "leastTokens"
    turn: int = 0
    seed: int = 0
    affinity: bytes = b""


@dataclass(frozen=True, slots=True)
class _Loaded:
    candidate: Candidate
    load: int


def pick(candidates: Iterable[Candidate], ask: Ask) -> Pick | None:
    """The groups for one request, or None when no head exists (`shortage` says why)."""
    groups = sorted(candidates, key=lambda c: c.key)
    partners: dict[Terms, list[_Loaded]] = {}
    for group in groups:
        if group.role == "decode":
            partners.setdefault(terms(group), []).append(_Loaded(group, group.outstanding))
    heads = []
    for group in groups:
        if group.role == "unified":
            heads.append(_Loaded(group, group.outstanding))
        elif group.role == "prefill" and terms(group) in partners:
            best = min(partner.load for partner in partners[terms(group)])
            heads.append(_Loaded(group, group.outstanding + best))
    if not heads:
        return None
    head = _choose(heads, ask).candidate
    if head.role == "unified":
        return Pick(head.key)
    fitting = partners[terms(head)]
    # With the same turn or draw for both, the first of two heads would never get the second of two
    # partners.
    count = len(heads), len(fitting)
    turn = ask.turn + ask.turn // lcm(*count) % gcd(*count)
    shifted = replace(ask, turn=turn, seed=ask.seed + 1)
    return Pick(head.key, _choose(fitting, shifted).candidate.key)


def shortage(candidates: Sequence[Candidate]) -> str:
    """Why `pick` finds nothing among `candidates`."""
    prefill = {terms(c) for c in candidates if c.role == "prefill"}
    decode = {terms(c) for c in candidates if c.role == "decode"}
    if prefill and decode:
        what, have = _differing(prefill, decode)
        return (
            f"no ready prefill and decode group share a {what} "
            f"(prefill: {', '.join(have[0])}; decode: {', '.join(have[1])})"
        )
    if prefill:
        return "no ready decode group"
    if decode:
        return "no ready prefill group"
    return "no ready group"


def _differing(*sides: set[Terms]) -> tuple[str, list[list[str]]]:
    """The first of the terms that the two sides never share, and what they have of it."""
    for place, what in enumerate(("KV fingerprint", "protocol", "control key")):
        have = [sorted({str(each[place]) for each in side}) for side in sides]
        if not set(have[0]) & set(have[1]):
            return what, have
    have = [sorted("/".join(map(str, each)) for each in side) for side in sides]
    return "KV fingerprint, protocol and control key", have


def _choose(groups: list[_Loaded], ask: Ask) -> _Loaded:
    if len(groups) == 1:
        return groups[0]
    turn = ask.turn % len(groups)
    rotated = groups[turn:] + groups[:turn]
    if ask.policy == "roundRobin":
        return rotated[0]
    if ask.policy == "powerOfTwo":
        draw = random.Random(f"{ask.seed}:{ask.turn}")
        return min(draw.sample(groups, 2), key=_load)
    if ask.policy in ("prefixAware", "session") and ask.affinity:
        return _preferred(groups, ask.affinity)
    return min(rotated, key=_load)


def _preferred(groups: list[_Loaded], affinity: bytes) -> _Loaded:
    """Rendezvous hashing (Thaler and Ravishankar, 1998) under a bound of load."""
    bound = AFFINITY_FACTOR * sum(map(_load, groups)) / len(groups) + AFFINITY_SLACK
    fitting = [group for group in groups if group.load <= bound]
    return max(fitting, key=lambda group: _rank(affinity, group.candidate.key))


def _rank(affinity: bytes, key: str) -> bytes:
    return hashlib.blake2b(affinity, digest_size=8, key=key.encode()[:64]).digest()


def _load(group: _Loaded) -> int:
    return group.load
