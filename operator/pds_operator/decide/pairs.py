"""Which ready groups can serve together: those of one KV format, protocol and control key. Pure.

A leader reports in /pds/state what must be equal to pair (the router's `policy.terms`). What it has
not reported, or not yet, is taken to be as in the rest of its revision, since that is what a
revision says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pds_operator.decide.fleet import Group
from pds_operator.facts.observed import LeaderState

PARTNER = {"prefill": "decode", "decode": "prefill"}


@dataclass(frozen=True, slots=True)
class PairTerms:
    """What must be equal to pair, and is empty or 0 where it is not known."""

    fingerprint: str = ""
    protocol: int = 0
    key: str = ""
    """The id that its leader reports."""
    mounted: str = ""
    """The id of the key that its pods mount, which is known of all: the first has none."""

    def fits(self, other: "PairTerms") -> bool:
        """Whether groups of both can pair, as far as that is known."""
        both = (
            (self.fingerprint, other.fingerprint),
            (self.protocol, other.protocol),
            (self.key, other.key),
        )
        return self.mounted == other.mounted and all(
            not one or not two or one == two for one, two in both
        )


def matching(fleet: Iterable[Group], states: Mapping[str, LeaderState]) -> list[Group]:
    """The ready groups that have a ready partner of their revision that they fit, or need none."""
    of: dict[str, list[Group]] = {}
    for group in fleet:
        of.setdefault(group.revision, []).append(group)
    return [group for own in of.values() for group in serving(own, states)]


def serving(fleet: Iterable[Group], states: Mapping[str, LeaderState]) -> list[Group]:
    """The ready groups that requests come to: those that need no partner, or have one that fits.

    Of whatever revision: that is how routers pair them.
    """
    ready = [group for group in fleet if group.ready]
    present: dict[str, set[PairTerms]] = {"prefill": set(), "decode": set()}
    for group in ready:
        if group.role in present:
            present[group.role].add(_terms(group, states))

    def fits(group: Group) -> bool:
        partner = PARTNER.get(group.role)
        own = _terms(group, states)
        return partner is None or any(own.fits(other) for other in present[partner])

    return [group for group in ready if fits(group)]


def serves(fleet: Iterable[Group], states: Mapping[str, LeaderState]) -> bool:
    """Whether a request would find its groups: one that does all, or a pair that fits."""
    return bool(serving(fleet, states))


def mismatch(fleet: Iterable[Group], states: Mapping[str, LeaderState], digest: str) -> str:
    """Why groups of one revision never pair; empty where they do, or have not reported."""
    own = [group for group in fleet if group.revision == digest]
    known = [(f"{group.role} group {group.index}", _terms(group, states)) for group in own]
    found = (
        ("", {who: terms.fingerprint[:12] for who, terms in known}, SAME_MODEL),
        ("protocol ", {who: str(terms.protocol or "") for who, terms in known}, SAME_IMAGE),
        ("control key ", {who: terms.key for who, terms in known}, SAME_KEY),
    )
    for what, values, hint in found:
        first: dict[str, str] = {}
        for who, value in values.items():
            if value:
                first.setdefault(value, who)
        if len(first) > 1:
            text = ", ".join(f"{who} has {what}{value}" for value, who in first.items())
            return f"groups of revision {digest} cannot pair: {text}; {hint}"
    return ""


SAME_MODEL = "do all pods see the same model folder?"
SAME_IMAGE = "do all pods run the same image?"
SAME_KEY = "was their Secret made anew by hand? kubectl pds rotate-keys gives all a new one"


def _terms(group: Group, states: Mapping[str, LeaderState]) -> PairTerms:
    leader = group.leader
    state = states.get(leader.name) if leader else None
    mounted = group.pods[0].key
    if state is None:
        return PairTerms(mounted=mounted)
    return PairTerms(state.fingerprint, state.protocol, state.key_id, mounted)
