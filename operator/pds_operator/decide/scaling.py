"""PDServingRole: the child that rules how many groups a role has where the PDServing does not say.

It has `/scale`, so that `kubectl scale pdsr` and HorizontalPodAutoscalers work on one role. It is
made for roles whose `replicas` are left out, and deleted when they are given again. Pure.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from pds_operator import names
from pds_operator.decide.actions import Create, Delete, ReportScale, object_scope
from pds_operator.decide.fleet import Group, Phase
from pds_operator.decide.round import Round
from pds_operator.render.owner import Owner
from pds_operator.schema import PDServingSpec

Object = dict[str, Any]


def scaled(round_: Round, spec: PDServingSpec) -> PDServingSpec:
    """`spec` with the replicas that it leaves out.

    They are the child's. Until it exists, as many groups are wanted as there are, and one where
    there is none: to take `replicas` out of a spec scales nothing.
    """
    found: dict[str, Any] = {}
    for role, shape in spec.roles.items():
        if shape.replicas is None:
            live = _child(round_, role)
            there = _present(round_.fleet, role)
            wanted = (live.get("spec") or {}).get("replicas", 1) if live else there
            found[role] = shape.model_copy(update={"replicas": wanted})
    return spec.model_copy(update=found) if found else spec


def keep_up(round_: Round) -> None:
    """Make, report and delete the children, by the spec as it was applied."""
    owner, spec, fleet = round_.owner, round_.asked.spec, round_.fleet
    ruling = {role for role, shape in spec.roles.items() if shape.replicas is None}
    for role in names.ROLES:
        name = names.role_object(owner.name, role)
        live = round_.observed.objects.get((names.ROLE_KIND, name))
        if role not in ruling:
            if live is not None and not live["metadata"].get("deletionTimestamp"):
                scope = object_scope(live)
                round_.actions.append(Delete(names.ROLE_KIND, name, live["metadata"]["uid"], scope))
        elif live is None:
            made = child(owner, role, _present(fleet, role))
            round_.actions.append(Create(made, object_scope(made)))
        else:
            status = _status(owner, role, fleet)
            if status != (live.get("status") or {}):
                uid, scope = live["metadata"]["uid"], f"{object_scope(live)}/status"
                round_.actions.append(ReportScale(name, uid, status, scope))


def child(owner: Owner, role: str, replicas: int) -> Object:
    """The object as it is made. Afterwards `spec` belongs to whoever scales it."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.ROLE_KIND,
        "metadata": owner.metadata(names.role_object(owner.name, role), role),
        "spec": {"replicas": replicas},
    }


def _status(owner: Owner, role: str, fleet: Iterable[Group]) -> Object:
    """In groups. A selector of leaders alone: an autoscaler averages over as many pods as there
    are groups."""
    staying = [group for group in fleet if group.role == role and group.phase is not Phase.LEAVING]
    selector = f"{names.NAME}={owner.name},{names.ROLE}={role},{names.RANK_POD}=0"
    return {
        "replicas": len(staying),
        "readyReplicas": sum(group.ready for group in staying),
        "selector": f"{selector},!{names.DRAINING}",
    }


def _child(round_: Round, role: str) -> Object | None:
    place = names.ROLE_KIND, names.role_object(round_.owner.name, role)
    return round_.observed.objects.get(place)


def _present(fleet: Iterable[Group], role: str) -> int:
    """Groups of the revision that has most: amid a rollout there are more than were wanted."""
    counts = Counter(
        group.revision for group in fleet if group.role == role and group.phase is not Phase.LEAVING
    )
    return max(counts.values(), default=1)
