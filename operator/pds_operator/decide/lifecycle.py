"""What happens to single groups: made, made again, routed to, drained. Pure.

`plan` decides how many groups of which revision there are to be; here each of them is kept up.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pds_operator import names
from pds_operator.decide.actions import (
    AskDrain,
    Create,
    Delete,
    Disband,
    Hold,
    MarkDraining,
    Problem,
    Say,
    SetGate,
    group_scope,
)
from pds_operator.decide.fleet import Group, Phase
from pds_operator.decide.round import Round
from pds_operator.facts.observed import Pod, Revision
from pds_operator.render import engine, gang

Object = dict[str, Any]

BROKEN_GRACE = 5
"""Ranks stuck in a collective ignore SIGTERM."""
DEADLINE_GRACE = 30
"""For a group that ran into its drain's deadline: its last requests end with an error."""


@dataclass(frozen=True, slots=True)
class GroupTimes:
    """What the spec says of a group's life."""

    drain_seconds: int
    schedule_timeout: float
    probe_seconds: float


@dataclass(frozen=True, slots=True)
class Ends:
    """How the attempts before one ended, in a row: by faults of its own, or by disruptions."""

    failures: int = 0
    disruptions: int = 0


NONE = Ends()


@dataclass(frozen=True, slots=True)
class Start:
    """A group that is to begin."""

    revision: Revision
    role: str
    index: int


def create(round_: Round, starts: Sequence[Start]) -> None:
    """The first attempts of new groups, in this order.

    One Event reports all that a role begins: one for each would cost as much as the pods.
    """
    begun: dict[tuple[str, str], list[int]] = {}
    for start in starts:
        role, data = start.role, start.revision.data
        size = engine.pods_per_group(data, role)
        _create_pods(round_, start.revision, role, start.index, 0, range(size))
        begun.setdefault((role, start.revision.digest), []).append(start.index)
    for (role, digest), indices in begun.items():
        which = "group" if len(indices) == 1 else "groups"
        text = f"created {role} {which} {_spans(indices)} of revision {digest}"
        round_.actions.append(Say("GroupCreated", text, scope=group_scope(role, indices[0])))


def _spans(numbers: Iterable[int]) -> str:
    """As people write them: 0-3, 5."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number])
    return ", ".join("-".join(map(str, span)) for span in spans)


def keep_up(round_: Round, times: GroupTimes, group: Group) -> None:
    """One round of one group's life."""
    _sweep(round_, group.remnants, group_scope(group.role, group.index))
    match group.phase:
        case Phase.LEAVING:
            _leave(round_, times, group)
        case Phase.FAILED:
            _make_again(round_, group)
        case Phase.EVICTED:
            _replace(round_, group, Ends(group.failures), "EvictedGroupReplaced")
        case Phase.STARTING:
            _start(round_, times, group)
        case Phase.UP:
            pass
    _route(round_, group)


def retire(round_: Round, times: GroupTimes, group: Group) -> None:
    """Begin to drain `group`; one that cannot serve is deleted at once.

    One that seems to start may serve unheard, where a watch is late or silent: the mark's answer
    says how its pods stand now, and the next round ends them by that.
    """
    scope = group_scope(group.role, group.index)
    deadline = round_.now + times.drain_seconds
    round_.actions += [MarkDraining(pod.name, pod.uid, deadline, scope) for pod in group.pods]
    if group.phase is Phase.STARTING:
        round_.unsettled = True
        round_.wake_at(round_.now)
        return
    if group.phase is not Phase.UP:
        _delete(round_, group.pods, scope, BROKEN_GRACE)
        return
    _ask(round_, times, group, scope)
    round_.actions.append(
        Say("GroupDraining", f"draining {group.role} group {group.index}", scope=scope)
    )
    round_.unsettled = True
    round_.wake_at(round_.now + times.probe_seconds)


def _leave(round_: Round, times: GroupTimes, group: Group) -> None:
    scope = group_scope(group.role, group.index)
    deadlines = [pod.drain_deadline for pod in group.pods if pod.drain_deadline is not None]
    deadline = min(deadlines, default=round_.now)
    unmarked = [pod for pod in group.pods if not pod.draining]
    round_.actions += [MarkDraining(pod.name, pod.uid, deadline, scope) for pod in unmarked]
    if all(pod.deleting for pod in group.pods):
        return
    leader = group.leader
    if leader is None or not _serves(group):
        broken = group.missing or any(pod.failed for pod in group.pods)
        runs = not broken and any(pod.phase == "Running" for pod in group.pods)
        _delete(round_, group.pods, scope, None if runs else BROKEN_GRACE)
        return
    state = round_.observed.states.get(leader.name)
    chosen = any(view.routable.get(leader.name) for view in round_.observed.routers)
    idle = state is not None and state.draining and not (state.in_flight or state.transfers)
    if idle and not chosen:
        _delete(round_, group.pods, scope, BROKEN_GRACE)
        said = f"{group.role} group {group.index} has drained"
        round_.actions.append(Say("GroupDrained", said, scope=scope))
    elif round_.now >= deadline:
        _delete(round_, group.pods, scope, DEADLINE_GRACE)
        said = f"{group.role} group {group.index} did not drain in time: what it has is ended"
        round_.actions.append(Say("DrainDeadline", said, warning=True, scope=scope))
    else:
        if state is None or not state.draining:
            _ask(round_, times, group, scope)
        round_.unsettled = True
        round_.wake_at(min(deadline, round_.now + times.probe_seconds))


def _make_again(round_: Round, group: Group) -> None:
    """End what is left of a failed attempt; start the next when its backoff is over.

    The pod that failed stays until then: it is what the attempts and the backoff are read from.
    """
    scope = group_scope(group.role, group.index)
    _delete(round_, [pod for pod in group.pods if not pod.failed], scope, BROKEN_GRACE)
    culprit = group.culprit
    message = (culprit.message if culprit else "a pod of it vanished").strip()
    if group.misconfigured:
        round_.report("ConfigurationError", f"{group.role}: {message}")
        return
    retry_at = group.retry_at()
    if culprit is not None and retry_at > round_.now:
        round_.problems.append(_ended(group, culprit, message[-500:]))
        round_.wake_at(retry_at)
        return
    ends = Ends(group.next_failures(), group.next_disruptions())
    _replace(round_, group, ends, "FailedGroupReplaced")


def _ended(group: Group, culprit: Pod, message: str) -> Problem:
    if culprit.disrupted:
        count = group.next_disruptions()
        text = f"{culprit.name} was ended by its node or the scheduler ({culprit.disrupted}), "
        return Problem("GroupDisrupted", f"{text}{count} times in a row: {message}")
    count = group.next_failures()
    text = f"{culprit.name} {culprit.end}, {count} failures in a row: {message}"
    return Problem("GroupFailing", text)


def _replace(round_: Round, group: Group, ends: Ends, reason: str) -> None:
    """Make the next attempt, from the group's own revision; the old one is swept next round."""
    revision = round_.observed.revisions.get(group.revision)
    scope = group_scope(group.role, group.index)
    if revision is None or group.role not in revision.data.get("roles", {}):
        text = f"revision {group.revision} of {group.role} group {group.index} is not stored"
        round_.report("RevisionMissing", text)
        return
    if _lost(round_, group, revision):
        return
    attempt = group.attempt + 1
    _create_pods(
        round_,
        revision,
        group.role,
        group.index,
        attempt,
        range(engine.pods_per_group(revision.data, group.role)),
        ends=ends,
    )
    text = f"{group.role} group {group.index} starts again as attempt {attempt}"
    culprit = group.culprit
    if culprit is not None:
        text += f": {culprit.name} {culprit.end}: {culprit.message}"
    round_.actions.append(Say(reason, text, warning=True, scope=scope))


def _lost(round_: Round, group: Group, revision: Revision) -> bool:
    """No pod of its revision can start: the Secret that it mounts is gone."""
    if not round_.observed.lost(revision.key):
        return False
    name = names.control_secret(round_.owner.name, revision.key)
    text = (
        f"{group.role} group {group.index} of revision {revision.digest} is not made again, as the "
        f"Secret {name} is gone: one with a new key takes its place"
    )
    round_.report("SecretLost", text)
    return True


def _start(round_: Round, times: GroupTimes, group: Group) -> None:
    """Make pods that are missing of a group that never ran; give up one that is half scheduled."""
    scope = group_scope(group.role, group.index)
    revision = round_.observed.revisions.get(group.revision)
    lost = revision is None or _lost(round_, group, revision)
    if group.missing and revision is not None and not lost:
        _create_pods(
            round_,
            revision,
            group.role,
            group.index,
            group.attempt,
            group.missing,
            ends=Ends(group.failures, group.disruptions),
        )
    waiting = group.unscheduled
    if not waiting:
        return
    said = next((pod.unscheduled for pod in waiting if pod.unscheduled), "")
    if len(waiting) == len(group.pods):
        return  # holds nothing: it may wait for as long as it takes
    until = max(pod.created for pod in group.pods) + times.schedule_timeout
    if round_.now < until:
        round_.wake_at(until)
        return
    deadline = round_.now
    round_.actions += [MarkDraining(pod.name, pod.uid, deadline, scope) for pod in group.pods]
    _delete(round_, group.pods, scope, BROKEN_GRACE)
    text = f"{group.role} group {group.index} was scheduled in part for too long: {said}"
    round_.actions.append(Hold(f"schedule/{group.role}", "Unschedulable", text))


def _route(round_: Round, group: Group) -> None:
    """The readiness gate: True when every ready router would choose the leader."""
    leader = group.leader
    if leader is None or leader.deleting or leader.failed or not leader.containers_ready:
        return
    lists = [view.routable.get(leader.name, False) for view in round_.observed.routers]
    scope = group_scope(group.role, group.index)
    if not leader.routable:
        round_.unsettled = round_.unsettled or group.phase is not Phase.LEAVING
        if lists and all(lists) and len(lists) == round_.observed.routers_ready:
            round_.actions.append(SetGate(leader.name, leader.uid, True, scope))
    elif lists and not all(lists):
        round_.actions.append(SetGate(leader.name, leader.uid, False, scope))


def _serves(group: Group) -> bool:
    leader = group.leader
    return (
        leader is not None
        and leader.started
        and not any(pod.failed or pod.deleting for pod in group.pods)
        and not group.missing
    )


def _ask(round_: Round, times: GroupTimes, group: Group, scope: str) -> None:
    leader = group.leader
    if leader is not None and leader.ip:
        round_.actions.append(
            AskDrain(leader.name, leader.ip, times.drain_seconds, scope, leader.key)
        )


def _sweep(round_: Round, pods: Iterable[Pod], scope: str) -> None:
    """Delete older attempts; those that still run drain by themselves on SIGTERM."""
    ending = [pod for pod in pods if not pod.deleting]
    _disband(round_, ending, scope)
    for pod in ending:
        grace = BROKEN_GRACE if pod.failed else None
        round_.actions.append(Delete("Pod", pod.name, pod.uid, scope, grace))


def _delete(round_: Round, pods: Iterable[Pod], scope: str, grace: int | None) -> None:
    ending = [pod for pod in pods if not pod.deleting]
    _disband(round_, ending, scope)
    round_.actions += [Delete("Pod", pod.name, pod.uid, scope, grace) for pod in ending]


def _disband(round_: Round, pods: Iterable[Pod], scope: str) -> None:
    """Before the pods, so that a crash in between leaves pods to do it for."""
    gangs = {(gang.KINDS[p.gang].api_version, p.name.rpartition("-")[0]) for p in pods if p.gang}
    round_.actions += [Disband(version, name, scope) for version, name in sorted(gangs)]


def _create_pods(
    round_: Round,
    revision: Revision,
    role: str,
    index: int,
    attempt: int,
    rank_pods: Iterable[int],
    *,
    ends: Ends = NONE,
) -> None:
    owner, scope = round_.owner, group_scope(role, index)
    if gang.of(revision.data, role):
        name = names.group_name(owner.name, role, index, attempt)
        made = gang.pod_group(owner, revision.data, role, name)
        round_.actions.append(Create(made, scope))
    for rank_pod in rank_pods:
        made = engine.pod(owner, revision.data, role, index, attempt, rank_pod, ends.failures)
        round_.actions.append(Create(_noted(made, ends), scope))


def _noted(pod: Object, ends: Ends) -> Object:
    if not ends.disruptions:
        return pod
    meta = pod["metadata"]
    notes = {**meta.get("annotations", {}), names.DISRUPTIONS: str(ends.disruptions)}
    return {**pod, "metadata": {**meta, "annotations": notes}}
