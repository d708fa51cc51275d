"""The simulator is only worth its while when it catches planners that are wrong on purpose."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import pytest
from aiohttp import ClientTimeout
from pds_engine.router import policy
from pds_operator.decide import (
    compiling,
    counting,
    hindrances,
    keyring,
    lifecycle,
    ownership,
    pairs,
    plan,
    progress,
    rollout,
)
from pds_operator.decide.actions import Delete, KeepRing
from pds_operator.decide.diff import ObjectVerdict
from pds_operator.decide.fleet import Group
from pds_operator.decide.ownership import Whose
from pds_operator.decide.plan import limits
from pds_operator.decide.round import Round
from pds_operator.decide.target import Target
from pds_operator.facts import clocks, containers, fields
from pds_operator.facts.observed import ControlKeys
from pds_operator.run import cluster
from simulation import memory, operators
from simulation.memory import remembering
from simulation.world import RunFailed, run

WITHIN = 300
"""Seeds by which each of them must have been caught."""
CAUGHT = {
    "the floor is ignored": 24,
    "keys that groups have are taken from the ring": 21,
    "the clocks of nodes are believed": 4,
    "nobody notices that a PDServing is gone": 0,
    "what was left behind is not adopted": 19,
    "time without an operator counts": 13,
    "what was lost is made last": 213,
    "groups are paired whatever key they have": 14,
    "whoever wears the labels of a router is one": 19,
    "a dead watch is trusted for minutes": 64,
    "fields that a POST has set are never pruned": 44,
    "what a node ends is a fault of its own": 32,
    "pairs are counted by readiness": 89,
    "no condition says what keeps pods from starting": 34,
    "nobody notes which Jobs gave way": 7,
}
"""The seeds that caught them last, which are tried first; what simulates otherwise moves them."""


def roles_seen_as(
    change: Callable[[rollout.Role], dict[str, int]],
) -> Callable[[Mapping[str, rollout.Role], rollout.RolloutLimits], rollout.Step]:
    """`rollout.step`, given something else about the roles."""
    step = rollout.step

    def mutated(roles: Mapping[str, rollout.Role], limits: rollout.RolloutLimits) -> rollout.Step:
        changed = {
            name: dataclasses.replace(role, **change(role))  # type: ignore[arg-type]
            for name, role in roles.items()
        }
        return step(changed, limits)

    return mutated


def deleted_at_once(round_: Round, times: lifecycle.GroupTimes, group: Group) -> None:
    scope = f"group/{group.role}/{group.index}"
    lifecycle._delete(round_, group.pods, scope, lifecycle.BROKEN_GRACE)


def ring_of_the_active_key(round_: Round, keys: ControlKeys, target: Target | None) -> None:
    desired = round_.asked
    others = set(keys.secrets) - {desired.key}
    for key in sorted(others):
        name = keyring.names.control_secret("chat", key)
        round_.actions.append(Delete("Secret", name, keys.secrets[key].uid, "keys"))
    if keys.ring != {desired.key}:
        round_.actions.append(KeepRing(frozenset({desired.key}), desired.key))


def run_all(seeds: Iterable[int]) -> None:
    for seed in seeds:
        run(seed)


MUTATIONS = {
    "the floor is ignored": (
        (rollout, "step", roles_seen_as(lambda role: {"old_ready": role.old_ready + 9})),
        "are left, and",
    ),
    "groups leave before there is a ready pair": (
        (
            rollout,
            "step",
            roles_seen_as(lambda role: {"new_ready": max(role.new_ready, min(1, role.new))}),
        ),
        "are left, and",
    ),
    "groups that leave are not counted in the surge": (
        (rollout, "step", roles_seen_as(lambda role: {"leaving": 0})),
        "at most",
    ),
    "a held rollout goes on": (
        (plan, "limits", lambda desired, target: limits(desired, None)),
        "the rollout is held",
    ),
    "a drain is not waited for": (
        (lifecycle, "_leave", deleted_at_once),
        "has requests, and its drain is not over",
    ),
    "groups are paired whatever key they have": (
        (policy, "terms", lambda group: (group.kv, group.protocol, "")),
        "a pair across control keys",
    ),
    "keys that groups have are taken from the ring": (
        (keyring, "_clear", ring_of_the_active_key),
        "found no group for a request|are left, and|no convergence",
    ),
    "a lost Secret is not missed": (
        (keyring, "_made", lambda *_: False),
        "no convergence|no group for a request",
    ),
    "the clocks of nodes are believed": (
        (clocks.StatusWindow, "_possible", lambda self, at: True),
        "after its group failed|no convergence",
    ),
    "whoever wears the labels of a router is one": (
        (ownership, "_put_router", lambda found, pod, *_: found.routers.append(pod)),
        "no convergence|found no group|are left, and",
    ),
    "nobody notices that a PDServing is gone": (
        (cluster.Store, "drop_parent", lambda *_: None),
        "rounds for a PDServing that is gone",
    ),
    "a dead watch is trusted for minutes": (
        (operators, "WATCH_TIMEOUT", ClientTimeout(sock_read=320)),
        "has not heard of",
    ),
    "everything is applied again in each round": (
        (memory.diff, "verdict", lambda *_: ObjectVerdict.APPLY),
        "writes at rest|no convergence",
    ),
    "what a predecessor owns is taken for ours": (
        (ownership, "_whose", lambda *_, made: Whose.OURS),
        "which is not ours|no convergence",
    ),
    "what was left behind is not adopted": (
        (ownership, "adoptions", lambda *_: []),
        "no convergence",
    ),
    "fields that a POST has set are never pruned": (
        [(fields, "unmoved", lambda obj: False), (memory.diff, "lists", lambda *_: {})],
        "no convergence|writes at rest",
    ),
    "time without an operator counts": (
        (progress, "_watched", lambda gap, every: gap),
        "is good, and given up|no convergence",
    ),
    "what a node ends is a fault of its own": (
        (containers, "disruption", lambda *_: ""),
        "is good, and given up",
    ),
    "a dead engine beside a sidecar is alive": (
        (containers, "ended", lambda obj: False),
        "no convergence",
    ),
    "pairs are counted by readiness": (
        [
            (pairs, "matching", lambda fleet, states: [group for group in fleet if group.ready]),
            (counting, "must_serve_on", lambda *_: False),
        ],
        "found no group|no convergence",
    ),
    "what was lost is made last": (
        (counting.CountingBasis, "before", lambda basis, role: 0),
        "before what was lost",
    ),
    "no condition says what keeps pods from starting": (
        (hindrances, "look", lambda *_: None),
        "and no condition says so",
    ),
    "nobody notes which Jobs gave way": (
        (compiling, "_noted", lambda target: {}),
        "is made twice",
    ),
    "what others add to a selector stays": (
        (memory.diff, "EXACT", {}),
        "no convergence",
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_caught(name, monkeypatch):
    """A list of them: each alone is made good by the other."""
    changes, reason = MUTATIONS[name]
    with remembering():
        for module, attribute, mutated in changes if isinstance(changes, list) else [changes]:
            monkeypatch.setattr(module, attribute, mutated)
        with pytest.raises(RunFailed, match=reason):
            run_all([*([CAUGHT[name]] if name in CAUGHT else ()), *range(WITHIN)])
