"""What `kubectl pds` prints, from plain objects. Pure."""

from collections.abc import Iterable, Mapping
from textwrap import shorten
from typing import Any

from pds_operator.decide.fleet import Group, Phase, groups
from pds_operator.facts.observed import Pod, rfc3339

Object = dict[str, Any]


def table(rows: list[list[str]]) -> str:
    """Columns as kubectl aligns them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def conditions(status: Object) -> list[list[str]]:
    keys = ("type", "status", "reason", "lastTransitionTime", "message")
    rows = [[str(item[key]) for key in keys] for item in status.get("conditions", [])]
    return [["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"], *rows]


def unseen(pds: Object) -> list[str]:
    """A line where the operator has not looked at the last edit: the rest is of an older one."""
    asked = int(pds["metadata"].get("generation") or 0)
    seen = int((pds.get("status") or {}).get("observedGeneration") or 0)
    if seen >= asked:
        return []
    looked = f"generation {seen} was seen last" if seen else "none was seen yet"
    cure = "if this lasts, see the operator's log and lease"
    return [f"generation {asked} is asked for, {looked}: {cure}"]


def tree(status: Object, pods: Iterable[Pod], in_flight: Mapping[str, int]) -> list[list[str]]:
    """Roles, their groups, and the pods of those: revision, phase, and what is under way.

    `in_flight`: what the routers have sent to each leader and await.
    """
    rows = [["ROLE", "REVISION", "ATTEMPT", "PHASE", "READY", "IN FLIGHT"]]
    fleet = groups(pods, lambda revision, role: 1)
    for role in ("prefill", "decode", "unified"):
        own = [group for group in fleet if group.role == role]
        if role not in status and not own:
            continue
        said = status.get(role, {})
        counts = ", ".join(f"{said[key]} {key}" for key in ROLE_COUNTS if said.get(key))
        rows.append([role, "", "", counts, str(said.get("summary", "")), ""])
        for group in own:
            rows.append(_group(group, in_flight))
            if len(group.pods) > 1:
                rows += [[f"    {pod.name}", "", "", pod.phase, "", ""] for pod in group.pods]
            rows += [
                [f"    {pod.name}", "", "", "an attempt before, ending", "", ""]
                for pod in group.remnants
            ]
    if "router" in status:
        router = status["router"]
        ready = f"{router.get('ready', 0)}/{router.get('desired', 0)}"
        rows.append(["router", "", "", "", ready, ""])
    return rows


def starts(startups: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """How long each group's slowest rank took to start, and with what; by leader."""
    phases = list(dict.fromkeys(phase for found in startups.values() for phase in found))
    rows = [["START", "SECONDS", *(phase.upper() for phase in phases)]]
    for leader, found in sorted(startups.items()):
        taken = (f"{found[phase]:.1f}" if phase in found else "" for phase in phases)
        rows.append([leader, f"{sum(found.values()):.1f}", *taken])
    return rows


ROLE_COUNTS = ("updated", "warm", "draining")


def _group(group: Group, in_flight: Mapping[str, int]) -> list[str]:
    leader = group.leader
    name = leader.name if leader is not None else f"group {group.index}"
    phase = group.phase.value
    deadline = leader.drain_deadline if leader is not None else None
    if group.phase is Phase.LEAVING and deadline is not None:
        phase = f"draining until {rfc3339(deadline)}"
    elif leader is not None and leader.message:
        phase = f"{phase}: {shorten(leader.message, 60, placeholder=' …')}"
    sent = str(in_flight[name]) if name in in_flight else ""
    ready = "yes" if group.ready else "no"
    return [f"  {name}", group.revision, str(group.attempt), phase, ready, sent]
