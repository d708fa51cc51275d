"""Carrying out a plan: every action is one call, and safe to repeat. The executor decides nothing.

A refusal ends its scope for this round and is kept as a ScopeFailure, an input of the next plan.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from pds_operator import errors, names
from pds_operator.decide import ownership
from pds_operator.decide.actions import (
    Action,
    Adopt,
    Annotate,
    Apply,
    AskDrain,
    Create,
    Delete,
    Disband,
    Hold,
    KeepRing,
    MakeCacheKey,
    MakeKey,
    MakeSeal,
    MarkDraining,
    Recover,
    Relabel,
    ReportScale,
    Say,
    SetGate,
    TakeOver,
    TryOut,
)
from pds_operator.decide.ownership import Whose
from pds_operator.facts.observed import ScopeFailure, rfc3339
from pds_operator.render import gang
from pds_operator.render.owner import Owner
from pds_operator.run import api
from pds_operator.run.api import TRANSIENT, Api
from pds_operator.run.cluster import Store
from pds_operator.run.probe import Prober
from pds_operator.run.vault import Vault
from pds_operator.run.writing import Writer

Object = dict[str, Any]

Together = Callable[..., Awaitable[list[Any]]]
"""As `asyncio.gather`."""
LANES = 16
"""Posts under way at once for one PDServing."""

log = logging.getLogger("pds_operator.execute")

WAIT_COUNTS_SECONDS = 1200.0
"""Above the time that a group may be scheduled in part: the next wait is longer than the last."""


@dataclass(slots=True)
class Backoff:
    """How often each scope was refused. A restart loses it, and learns it anew."""

    failures: dict[str, ScopeFailure] = field(default_factory=dict)

    def refuse(self, scope: str, reason: str, message: str, now: float) -> None:
        """`scope` was refused: hold it back, longer each time up to five minutes."""
        before = self.failures.get(scope)
        count = before.count + 1 if before else 1
        until = now + min(300.0, 5.0 * 2 ** (count - 1))
        since = before.since if before and before.reason == reason else now
        self.failures[scope] = ScopeFailure(reason, message, count, until, since)

    def settle(self, done: Iterable[str], planned: set[str], now: float) -> None:
        """Forget what succeeded, and what is no longer asked for.

        Nobody asks for a wait that ran out: it counts until there has been none for a while.
        """
        for scope in done:
            self.failures.pop(scope, None)
        for scope, failure in list(self.failures.items()):
            kept = WAIT_COUNTS_SECONDS if scope.startswith("schedule/") else 0.0
            if failure.until + kept <= now and scope not in planned:
                del self.failures[scope]


@dataclass(slots=True)
class Outcome:
    """What has become of a round's actions so far, by scope."""

    planned: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    again: bool = False


class Executor:
    """Writes, for one PDServing after another."""

    def __init__(
        self,
        api: Api,
        store: Store,
        prober: Prober,
        leads: Callable[[], bool],
        clock: Callable[[], float] = time.time,
        together: Together = asyncio.gather,
    ) -> None:
        self._api = api
        self._writer = Writer(api, store)
        self._prober = prober
        self._leads = leads
        self._clock = clock
        self._together = together

    async def carry_out(
        self, actions: Iterable[Action], owner: Owner, backoff: Backoff, vault: Vault
    ) -> bool:
        """All of one round; whether something is worth another look at once.

        New pods and Events, of which there may be a thousand, are posted side by side; everything
        else is done one after another.

        Raises:
            NotLeading: the lease is lost; what was not done yet is not done.
            Throttled: the API server has no room; the same goes for what was not done yet.
        """
        outcome = Outcome()
        for together, wave in groupby(actions, _side_by_side):
            ended = await self._together(
                *(
                    self._lane(lane, outcome, owner, backoff, vault)
                    for lane in _lanes(wave, LANES if together else 1)
                ),
                return_exceptions=True,
            )
            for error in filter(None, ended):
                raise error
        backoff.settle(outcome.done - outcome.refused, outcome.planned, self._clock())
        return outcome.again

    async def _lane(
        self,
        actions: Iterable[Action],
        outcome: Outcome,
        owner: Owner,
        backoff: Backoff,
        vault: Vault,
    ) -> None:
        for action in actions:
            outcome.planned.add(action.scope)
            if action.scope in outcome.refused:
                continue
            if not self._leads():
                raise errors.NotLeading("the lease is not ours; nothing was written")
            try:
                await self._one(action, owner, backoff, vault)
                outcome.again = outcome.again or isinstance(action, MakeKey)
                if not isinstance(action, Hold):
                    outcome.done.add(action.scope)
            except (errors.Conflict, errors.Missing) as error:
                # Changed or gone in between: the next round sees how it stands.
                log.info("%s: %s: %s", owner.name, action, error.message)
                outcome.refused.add(action.scope)
                outcome.again = True
            except errors.Throttled:
                raise  # the rest of the round would meet with the same
            except errors.OperatorError as error:
                log.warning("%s: %s: %s", owner.name, action, error.message)
                outcome.refused.add(action.scope)
                backoff.refuse(
                    action.scope, error.reason, f"{action}: {error.message}", self._clock()
                )
            except TRANSIENT as error:
                message = str(error) or type(error).__name__
                log.warning("%s: %s: %s", owner.name, action, message)
                outcome.refused.add(action.scope)
                backoff.refuse(action.scope, "ApiUnreachable", message, self._clock())

    async def _one(self, action: Action, owner: Owner, backoff: Backoff, vault: Vault) -> None:
        if not isinstance(action, Say):
            log.info("%s/%s: %s", owner.namespace, owner.name, action)
        match action:
            case Create(obj=obj):
                await self._writer.create(obj, owner)
            case Apply(obj=obj, uid=uid):
                await self._writer.apply(obj, uid)
            case TakeOver(obj=obj, uid=uid):
                await self._writer.take_over(obj, uid)
            case Adopt(kind=kind, name=name, uid=uid):
                await self._writer.adopt(kind, name, uid, owner)
                if kind == "Secret":
                    vault.forget()
            case Relabel(pod=name, uid=uid, labels=labels):
                await self._writer.label("Pod", name, uid, labels, owner)
            case MakeKey():
                await vault.make_key(self._api, owner, action, self._leads)
            case KeepRing():
                await vault.keep_ring(self._api, owner, action)
            case MakeCacheKey():
                await vault.make_cache_key(self._api, owner, action)
            case MakeSeal(claim=claim):
                await vault.make_seal(self._api, owner, claim)
            case TryOut(obj=obj):
                await self._try_out(obj)
            case Annotate(kind=kind, name=name, uid=uid, annotations=notes):
                patch = {"metadata": {"uid": uid, "annotations": notes}}
                self._writer.seen(await self._api.merge(kind, owner.namespace, name, patch), kind)
            case Recover(metadata=metadata):
                await self._writer.recover(metadata, owner)
            case MarkDraining():
                await self._mark(action, owner)
            case AskDrain(ip=ip, seconds=seconds, key=key):
                error = await self._prober.drain(ip, seconds, vault.key(key))
                if error:
                    log.info("%s: %s: %s", owner.name, action, error)
            case SetGate():
                await self._gate(action, owner)
            case ReportScale(name=name, uid=uid, status=status):
                patch = {"metadata": {"uid": uid}, "status": status}
                written = await self._api.merge(
                    names.ROLE_KIND, owner.namespace, name, patch, "status"
                )
                self._writer.seen(written, names.ROLE_KIND)
            case Delete(kind=kind, name=name, uid=uid, grace=grace):
                if kind == "Secret":
                    vault.forget()
                await self._delete(kind, owner.namespace, name, uid, grace)
            case Disband(api_version=api_version, name=name):
                await self._disband(api_version, name, owner)
            case Hold(scope=scope, reason=reason, message=message):
                backoff.refuse(scope, reason, message, self._clock())
            case Say():
                await self._say(action, owner)

    async def _try_out(self, obj: Object) -> None:
        """Refuse a template that can never be; a full quota says nothing about it."""
        try:
            await self._api.create(obj, dry_run=True)
        except errors.AdmissionDenied as error:
            log.info("dry run of %s: %s", obj["metadata"]["name"], error.message)

    async def _mark(self, action: MarkDraining, owner: Owner) -> None:
        patch = {
            "metadata": {
                "uid": action.uid,
                "labels": {names.DRAINING: "true"},
                "annotations": {names.DRAIN_DEADLINE: rfc3339(action.deadline)},
            }
        }
        self._writer.seen(await self._api.merge("Pod", owner.namespace, action.pod, patch), "Pod")

    async def _gate(self, action: SetGate, owner: Owner) -> None:
        condition = {
            "type": names.ROUTABLE,
            "status": "True" if action.routable else "False",
            "lastTransitionTime": rfc3339(self._clock()),
            "reason": "Listed" if action.routable else "NotListed",
            "message": "every ready router lists this group"
            if action.routable
            else "a ready router does not list this group",
        }
        patch = {"metadata": {"uid": action.uid}, "status": {"conditions": [condition]}}
        self._writer.seen(
            await self._api.strategic("Pod", owner.namespace, action.pod, patch, "status"), "Pod"
        )

    async def _delete(
        self, kind: str, namespace: str, name: str, uid: str, grace: int | None
    ) -> None:
        try:
            await self._api.delete(kind, namespace, name, uid, grace)
        except errors.Missing:
            log.debug("%s %s is gone already", kind, name)

    async def _disband(self, api_version: str, name: str, owner: Owner) -> None:
        kind = api.kind_of({"kind": gang.KIND, "apiVersion": api_version})
        try:
            live = await self._api.get(kind, owner.namespace, name)
            live["kind"] = gang.KIND
            if ownership.whose(live, owner) in (Whose.OURS, Whose.ORPHAN):
                uid = live["metadata"]["uid"]
                await self._delete(kind, owner.namespace, name, uid, None)
        except errors.Missing:
            log.debug("PodGroup %s is gone already", name)

    async def _say(self, action: Say, owner: Owner) -> None:
        """Post an Event. One that is refused is logged, and stops nothing."""
        moment = rfc3339(self._clock())
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{owner.name}.", "namespace": owner.namespace},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": owner.name,
                "namespace": owner.namespace,
                "uid": owner.uid,
            },
            "reason": action.reason,
            "message": action.message[:1024],
            "type": "Warning" if action.warning else "Normal",
            "source": {"component": names.MANAGER},
            "firstTimestamp": moment,
            "lastTimestamp": moment,
            "count": 1,
        }
        try:
            await self._api.create(event)
        except errors.ApiError as error:
            log.warning("an event was refused: %s", error.message)


def _side_by_side(action: Action) -> bool:
    return isinstance(action, Say) or (isinstance(action, Create) and action.obj["kind"] == "Pod")


def _lanes(actions: Iterable[Action], count: int) -> list[list[Action]]:
    """At most `count` of them. Actions of one scope share one, in order: a refusal ends them."""
    lanes: list[list[Action]] = []
    lane_of: dict[str, int] = {}
    for action in actions:
        at = lane_of.setdefault(action.scope, len(lane_of) % count)
        if at == len(lanes):
            lanes.append([])
        lanes[at].append(action)
    return lanes
