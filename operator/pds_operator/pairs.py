"""Which ready groups can serve together: those of one KV format. Pure.

A leader tells in /pds/state what must be equal to pair. One that has not told yet is taken to be
as the rest of its revision, since that is what a revision says.
"""

from collections.abc import Iterable, Mapping

from pds_operator.fleet import Group
from pds_operator.observed import EngineState

PARTNER = {"prefill": "decode", "decode": "prefill"}


def matching(fleet: Iterable[Group], states: Mapping[str, EngineState]) -> list[Group]:
    """The ready groups that have a ready partner of their revision and KV format, or need none."""
    ready = [group for group in fleet if group.ready]
    told = {(g.role, g.index): _format(g, states) for g in ready}

    def has_partner(group: Group) -> bool:
        own, partner = told[group.role, group.index], PARTNER.get(group.role)
        return partner is None or any(
            other.role == partner
            and other.revision == group.revision
            and _fits(own, told[other.role, other.index])
            for other in ready
        )

    return [group for group in ready if has_partner(group)]


def serves(fleet: Iterable[Group], states: Mapping[str, EngineState]) -> bool:
    """Whether a request would find its groups: one that does all, or a pair of one format."""
    ready = [group for group in fleet if group.ready]
    heads = {_format(group, states) for group in ready if group.role == "prefill"}
    tails = {_format(group, states) for group in ready if group.role == "decode"}
    return any(group.role == "unified" for group in ready) or any(
        _fits(head, tail) for head in heads for tail in tails
    )


def mismatch(fleet: Iterable[Group], states: Mapping[str, EngineState], digest: str) -> str:
    """Why groups of one revision never pair; empty where they do, or have not told."""
    told: dict[str, str] = {}
    for group in fleet:
        own = _format(group, states) if group.revision == digest else ""
        if own:
            told.setdefault(own, f"{group.role} group {group.index}")
    if len(told) < 2:
        return ""
    text = ", ".join(f"{who} has {fingerprint[:12]}" for fingerprint, who in told.items())
    return (
        f"groups of revision {digest} cannot pair: {text}; do all pods see the same model folder?"
    )


def _format(group: Group, states: Mapping[str, EngineState]) -> str:
    """What must be equal to pair; empty where the leader has not told."""
    state = states.get(group.leader.name) if group.leader else None
    return state.fingerprint if state else ""


def _fits(one: str, other: str) -> bool:
    return not one or not other or one == other
