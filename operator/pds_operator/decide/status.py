"""The status of a PDServing: what is so, and why. Pure.

Conditions as in KEP-1623; lastTransitionTime moves only when the status of a condition changes.
  Ready        a request would be answered now: a router, and a routable group of every role
  Progressing  the cluster differs from what is wanted and is being brought there
  KernelsWarm  every group of the target proves by its manifest that it compiles nothing any more
  Degraded     something stands in the way, or groups are missing that nothing is bringing back
  Reconciling  what is asked for is not there yet, and comes by itself     } kstatus: at most one
  Stalled      what is asked for will not come until a person does something } of both is True
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pds_operator import names
from pds_operator.decide import pairs, severity, volume
from pds_operator.decide.actions import Apply, Create, Problem, TakeOver
from pds_operator.decide.compiling import WarmupState
from pds_operator.decide.fleet import Group, Phase
from pds_operator.decide.plan import Desired, Plan, routers_settled
from pds_operator.facts.observed import Observed, rfc3339
from pds_operator.render import config, router

Object = dict[str, Any]
Condition = tuple[str, str, str]
"""(status, reason, message) of a condition."""

MESSAGE_LIMIT = 2000
NAMED = 5
"""Pods of a kind that a message names; of more it gives the number."""
DIGEST = 12
"""Characters of a manifest's digest that a message gives."""
OWN = ("Ready", "Progressing", "KernelsWarm", "Degraded")
KSTATUS = ("Reconciling", "Stalled")
"""For tools (kstatus, Argo CD, Flux): they say nothing that the others do not."""


def status(
    observed: Observed, desired: Desired, plan: Plan, previous: Mapping[str, Any], now: float
) -> Object:
    """The whole status, to be written when it differs from `previous`."""
    problems = [*plan.problems, *_kv_mismatch(observed, plan)]
    cache = volume.problem(desired.owner.name, desired.spec, observed, plan.groups)
    problems += [cache] if cache else []
    problems += [Problem("ProgressDeadlineExceeded", plan.overdue)] if plan.overdue else []
    roles = {role: _role(observed, plan, role) for role in plan.roles}
    routers = _routers(observed, desired)
    conditions: dict[str, Condition] = {
        "Ready": _ready(observed, desired, plan, routers),
        "Progressing": _progressing(observed, desired, plan, {**roles, "router": routers}, now),
        "KernelsWarm": _kernels_warm(observed, desired, plan, roles),
        "Degraded": _degraded(problems),
    }
    lacking = any(one["ready"] < one["desired"] for one in (*roles.values(), routers))
    conditions |= _kstatus(conditions["Progressing"], problems, lacking=lacking)
    return {
        "observedGeneration": desired.generation,
        "conditions": _conditions(conditions, previous, desired.generation, now),
        "currentRevision": _current(observed, desired, plan),
        "targetRevision": names.revision(desired.owner.name, plan.target),
        "endpoint": router.endpoint(desired.owner, desired.spec),
        **roles,
        "router": routers,
    }


def refused(generation: int, problem: Problem, previous: Mapping[str, Any], now: float) -> Object:
    """The status of an object whose spec cannot be read: what runs goes on as it is."""
    verdict: Condition = ("False", problem.reason, problem.message)
    conditions: dict[str, Condition] = {"Progressing": verdict, "Degraded": ("True", *verdict[1:])}
    conditions |= _kstatus(verdict, [problem], lacking=True)
    for kind in ("Ready", "KernelsWarm"):
        old = _previous(previous, kind)
        conditions[kind] = (old["status"], old["reason"], old["message"]) if old else verdict
    return {
        **previous,
        "observedGeneration": generation,
        "conditions": _conditions(conditions, previous, generation, now),
    }


def transitions(previous: Mapping[str, Any], new: Mapping[str, Any]) -> list[Condition]:
    """(type, reason, message) of the conditions whose status or reason changed: worth an Event.

    What Degraded says is reported once, though others say it too.
    """
    changed = []
    for condition in new.get("conditions", []):
        if condition["type"] in KSTATUS:
            continue
        old = _previous(previous, condition["type"])
        if old is None and condition["status"] != "True":
            continue  # a new object is neither ready nor degraded: that is no news
        before = (old["status"], old["reason"]) if old else None
        if before != (condition["status"], condition["reason"]):
            changed.append((condition["type"], condition["reason"], condition["message"]))
    worst = {reason for kind, reason, _ in changed if kind == "Degraded"}
    return [change for change in changed if change[0] == "Degraded" or change[1] not in worst]


def warm(group: Group, observed: Observed) -> bool:
    """Whether the leader runs on exactly the kernels that its warm-up proved."""
    leader = group.leader
    if leader is None or not group.warm or leader.proof is None:
        return False
    state = observed.states.get(leader.name)
    return state is not None and state.manifest == leader.proof.manifest


def _role(observed: Observed, plan: Plan, role: str) -> Object:
    own = [group for group in plan.groups if group.role == role]
    staying = [group for group in own if group.phase is not Phase.LEAVING]
    wanted = plan.roles[role].want
    ready = sum(group.ready for group in staying)
    return {
        "desired": wanted,
        "created": len(staying),
        "ready": ready,
        "updated": sum(group.revision == plan.target for group in staying),
        "warm": sum(warm(group, observed) for group in staying),
        "draining": len(own) - len(staying),
        "summary": f"{ready}/{wanted}",
    }


def _routers(observed: Observed, desired: Desired) -> Object:
    live = observed.objects.get(("Deployment", names.router(desired.owner.name))) or {}
    wanted = router.router_spec(desired.spec).replicas
    if wanted is None:  # whoever scales it says
        wanted = (live.get("spec") or {}).get("replicas", router.DEFAULT_REPLICAS)
    return {"desired": wanted, "ready": (live.get("status") or {}).get("readyReplicas", 0)}


def _ready(observed: Observed, desired: Desired, plan: Plan, routers: Object) -> Condition:
    if not routers["ready"]:
        return "False", "NoRouter", "no router pod is ready"
    if not observed.endpoints:
        return "False", "NoEndpoint", _no_endpoint(desired.owner.name)
    if pairs.serves(plan.groups, observed.states):
        return "True", "Routable", f"requests are answered at {_endpoint(desired)}"
    serving = {group.role for group in plan.groups if group.ready}
    missing = ", ".join(role for role in desired.spec.roles if role not in serving)
    if not missing:
        return "False", "NoPair", "no ready prefill and decode group share a KV format"
    return "False", "NoRoutableGroup", f"no routable group of {missing}"


def _no_endpoint(service: str) -> str:
    return (
        f"the EndpointSlices of Service {service} list no ready router, so that it reaches none; "
        f"it is put back where somebody changed it: if this lasts, kubectl delete service {service}"
        ", which is made anew"
    )


def _endpoint(desired: Desired) -> str:
    return router.endpoint(desired.owner, desired.spec)


def _progressing(
    observed: Observed, desired: Desired, plan: Plan, parts: Mapping[str, Object], now: float
) -> Condition:
    roles, routers = {role: parts[role] for role in plan.roles}, parts["router"]
    counts = "; ".join(
        f"{role} {count['ready']} ready of {count['desired']}, {count['updated']} of revision "
        f"{plan.target}" + (f", {count['draining']} draining" if count["draining"] else "")
        for role, count in roles.items()
    )
    stale = any(role.old for role in plan.roles.values()) or any(
        group.revision != plan.target and not group.stuck(now) for group in plan.groups
    )
    done, steps = plan.step.reached, plan.step.steps
    if plan.refused:
        state = "False" if severity.stalled([plan.refused]) else "True"
        return state, plan.refused.reason, f"{plan.refused.message}; {counts}"
    if plan.step.held:
        paused = desired.rollout.paused
        said = "paused" if paused else f"partition {desired.rollout.partition}"
        reason = "Paused" if paused else "PartitionReached"
        return "False", reason, f"held at step {done} of {steps} by spec.rollout, {said}: {counts}"
    if plan.overdue:
        return "False", "ProgressDeadlineExceeded", f"{plan.overdue}; {counts}"
    if plan.warmup.state is WarmupState.RUNNING:
        return "True", "WarmupRunning", f"{plan.warmup.message}; {counts}"
    if plan.warmup.state is WarmupState.IN_INIT:
        said = plan.warmup.message or "new pods compile for themselves, before they start"
        return "True", "WarmupInInit", f"{said}; {counts}"
    if stale:
        reason = "RollingBack" if plan.rejected else "RollingOut"
        settled = routers_settled(observed, desired.owner.name)
        first = "" if settled else "routers are replaced first; "
        return "True", reason, f"{first}step {done} of {steps} is done: {counts}"
    leaving = any(g.phase is Phase.LEAVING and not g.stuck(now) for g in plan.groups)
    if leaving or any(count["created"] > count["desired"] for count in roles.values()):
        return "True", "Draining", counts
    if any(count["created"] < count["desired"] for count in roles.values()):
        return "True", "Creating", counts
    if any(count["ready"] < count["desired"] for count in roles.values()):
        return "True", "Starting", counts
    if pairs.mismatch(plan.groups, observed.states, plan.target):
        return "True", "Starting", f"groups are ready and cannot pair; {counts}"
    counts = f"router {routers['ready']} ready of {routers['desired']}; {counts}"
    if _writes_routers(plan) or not routers_settled(observed, desired.owner.name):
        return "True", "RollingOut", f"routers are replaced: {counts}"
    if routers["ready"] < routers["desired"]:
        return "True", "Starting", counts
    return "False", "Complete", counts


def _writes_routers(plan: Plan) -> bool:
    """Their Deployment is not yet as it should be."""
    writes = [item for item in plan.actions if isinstance(item, Apply | Create | TakeOver)]
    return any(item.obj["kind"] == "Deployment" for item in writes)


def _kernels_warm(
    observed: Observed, desired: Desired, plan: Plan, roles: Mapping[str, Object]
) -> Condition:
    if not config.warms_up(desired.spec):
        return "Unknown", "WarmupDisabled", "spec.compileCache asks for no warm-up"
    late = [
        f"{name}: {state.compiles_after_ready}"
        for name, state in sorted(observed.states.items())
        if state.compiles_after_ready
    ]
    if late:
        more = f" and {len(late) - NAMED} more" if len(late) > NAMED else ""
        text = f"compilations after ready: {', '.join(late[:NAMED])}{more}"
        return "False", "CompiledAfterReady", text
    failed = _failed_proof(plan)
    if failed:
        return "False", "WarmupFailed", failed
    return _with_jobs(plan, _proved(desired, plan, roles))


def _with_jobs(plan: Plan, verdict: Condition) -> Condition:
    """`verdict`, and what becomes of the Jobs that compile: whether it holds is said by pods."""
    state, reason, text = verdict
    problems = [plan.warmup.gave_way, *(filling.problem for filling in plan.fillings)]
    told = [problem for problem in problems if problem is not None]
    said = [f"for {filling.target}: {filling.state}" for filling in plan.fillings]
    said += [problem.message for problem in told]
    text = "; ".join(dict.fromkeys((text, *said)))
    covers = reason in ("Warm", "WarmingUp") and told
    return state, told[0].reason if covers else reason, text


def _proved(desired: Desired, plan: Plan, roles: Mapping[str, Object]) -> Condition:
    cold = {role: count["created"] - count["warm"] for role, count in roles.items()}
    if any(cold.values()) or not any(count["created"] for count in roles.values()):
        text = ", ".join(f"{count} {role}" for role, count in cold.items() if count)
        return "False", "WarmingUp", f"groups without a proof: {text or 'all'}"
    proofs = [pod.proof for group in plan.groups for pod in group.pods if pod.proof is not None]
    compiled, reused = sum(each.compiled for each in proofs), sum(each.reused for each in proofs)
    text = f"all groups proved warm: {compiled} artefacts compiled, {reused} reused"
    text = f"{text}; {_manifests([each.manifest for each in proofs])}"
    if eager := _eager(plan):
        text = f"{text}; not compiled: {', '.join(eager)}"
    alone = volume.private(plan.groups)
    if alone:
        return "True", "WarmPrivate", f"{text}; {alone}"
    given = desired.spec.compile_cache.volume if desired.spec.compile_cache else None
    if given is None or given.ephemeral is not None:
        return "True", "WarmEphemeral", f"{text}; the volume is ephemeral: each pod compiles"
    return "True", "Warm", text


def _manifests(digests: list[str]) -> str:
    """Several where roles, stages or processors differ in what they run."""
    known = list(dict.fromkeys(digest[:DIGEST] for digest in digests))
    more = f" and {len(known) - NAMED} more" if len(known) > NAMED else ""
    return f"manifest{'s' if known[1:] else ''} {', '.join(known[:NAMED])}{more}"


def _eager(plan: Plan) -> list[str]:
    """What runs without being compiled, by the words of the proofs."""
    proofs = [pod.proof for group in plan.groups for pod in group.pods if pod.proof is not None]
    return list(dict.fromkeys(words for proof in proofs for words in proof.eager))


def _failed_proof(plan: Plan) -> str:
    for group in plan.groups:
        for pod in group.pods:
            if pod.proof is not None and pod.proof.error:
                return f"{pod.name}: {pod.proof.error}"
    return ""


def _degraded(problems: list[Problem]) -> Condition:
    if not problems:
        return "False", "AsExpected", "nothing stands in the way"
    ranked = severity.worst_first(problems)
    text = "; ".join(dict.fromkeys(problem.message for problem in ranked))
    return "True", ranked[0].reason, text


def _kstatus(
    progressing: Condition, problems: list[Problem], *, lacking: bool
) -> dict[str, Condition]:
    """As Deployments are read: a paused rollout is under way, one at its partition is over.

    lacking: not everything that is wanted is ready.
    """
    state, reason, message = progressing
    stuck = severity.stalled(problems)
    under_way = stuck is None and (state == "True" or reason == "Paused" or lacking)
    return {
        "Reconciling": ("True" if under_way else "False", reason, message),
        "Stalled": ("True", stuck.reason, stuck.message)
        if stuck
        else ("False", "AsExpected", "nothing waits for a person"),
    }


def _kv_mismatch(observed: Observed, plan: Plan) -> list[Problem]:
    """Groups of one revision must have one fingerprint, else no two of them ever pair."""
    text = pairs.mismatch(plan.groups, observed.states, plan.target)
    return [Problem("KvFingerprintMismatch", text)] if text else []


def _current(observed: Observed, desired: Desired, plan: Plan) -> str:
    """The revision that serves: the target once every wanted group of it is ready.

    Until then one that has a ready group, if any has: of those the one that stood whole last.
    """
    whole = all(role.new_ready >= role.want for role in plan.roles.values())
    if whole and any(role.want for role in plan.roles.values()):
        return names.revision(desired.owner.name, plan.target)
    ready = Counter(group.revision for group in plan.groups if group.ready)
    stored = observed.revisions.values()
    serving = [item for item in stored if ready[item.digest]]
    known = serving or [item for item in stored if item.served is not None]
    found = max(known, key=lambda r: (r.served or 0.0, ready[r.digest], r.number), default=None)
    return names.revision(desired.owner.name, found.digest) if found else ""


def _conditions(
    states: Mapping[str, Condition], previous: Mapping[str, Any], generation: int, now: float
) -> list[Object]:
    result = []
    for kind in (*OWN, *KSTATUS):
        state, reason, message = states[kind]
        old = _previous(previous, kind)
        same = old is not None and old["status"] == state
        result.append(
            {
                "type": kind,
                "status": state,
                "reason": reason,
                "message": message[:MESSAGE_LIMIT],
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if old and same else rfc3339(now),
            }
        )
    return result


def _previous(status: Mapping[str, Any], kind: str) -> Object | None:
    return next((item for item in status.get("conditions") or [] if item["type"] == kind), None)
