"""One PDServing after another, level-triggered: observe → plan → one round → status.

A worker per PDServing sleeps until something of it changes or a plan's wake-up is due. It keeps
nothing that a restart would miss, but for how often a refused write was tried.
"""

import asyncio
import base64
import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pds_operator import errors, names, ownership, spec, status
from pds_operator.actions import Create, MakeSecret, Problem, Say
from pds_operator.api import TRANSIENT, Api
from pds_operator.build.owner import Owner
from pds_operator.cluster import Key, Store
from pds_operator.execute import Executor, Ledger, Together
from pds_operator.observed import EngineState, Observed, RouterView
from pds_operator.ownership import Belongings, Whose
from pds_operator.plan import Desired, Plan, plan
from pds_operator.probe import Prober
from pds_operator.settings import Settings

Object = dict[str, Any]

log = logging.getLogger("pds_operator.reconcile")

SETTLE_SECONDS, SETTLE_MOST = 0.02, 1.0
"""Changes come in bursts: one look for all of one. At least and at most."""
SETTLE_TIMES = 20
"""In between, so many times as long as the last plan took, which grows with the pods."""
STATE_SECONDS = 30.0
"""How long a leader's last answer stands for status, when it does not answer just now."""
SECRET_SECONDS = 60.0


def settle(thought: float) -> float:
    """Seconds from a change to the next round, where the last plan took `thought` seconds."""
    return min(SETTLE_MOST, max(SETTLE_SECONDS, SETTLE_TIMES * thought))


@dataclass(slots=True)
class Worker:
    """What is kept for one PDServing."""

    uid: str = ""
    """Of the PDServing: nothing of a predecessor's is believed."""
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    since: float | None = None
    """When it became dirty, by the monotonic clock."""
    thought: float = 0.0
    """Seconds that the last round took to plan."""
    ledger: Ledger = field(default_factory=Ledger)
    states: dict[str, tuple[EngineState, float, str]] = field(default_factory=dict)
    """By leader: its last answer, when that came, and its uid. A name may be another pod's soon."""
    views: list[RouterView] = field(default_factory=list)
    asked: dict[str, str] = field(default_factory=dict)
    """The uids of the pods that there were when routers were asked."""
    probed: float = 0.0
    secret: tuple[bool, bytes, float] = (False, b"", 0.0)
    """(it is there and ours, its HMAC key, when it was read)."""
    secret_object: Object | None = None
    """What has the Secret's name, whosesoever it is: kind and metadata."""

    def serve(self, uid: str) -> None:
        """Serve the PDServing of `uid`: what is known of a predecessor of its name is forgotten."""
        if uid == self.uid:
            return
        new = Worker(uid, self.dirty, self.since)
        for each in dataclasses.fields(self):
            setattr(self, each.name, getattr(new, each.name))


class Reconciler:
    """Runs the workers."""

    def __init__(
        self,
        api: Api,
        prober: Prober,
        settings: Settings,
        leads: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
        together: Together = asyncio.gather,
    ) -> None:
        self._api = api
        self._prober = prober
        self._settings = settings
        self._leads = leads
        self._clock = clock
        self._workers: dict[Key, Worker] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._running = False
        self.store = Store(self.mark)
        self.rounds = 0
        self._executor = Executor(api, self.store, prober, leads, clock, together)

    def mark(self, key: Key) -> None:
        """Something of `key` changed."""
        worker = self._workers.get(key)
        if worker is None:
            if self.store.parent(key) is None:
                return
            worker = self._workers[key] = Worker()
        if worker.since is None:
            worker.since = time.monotonic()
        worker.dirty.set()
        if self._running and key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._work(key), name=f"reconcile {key}")

    def mark_all(self) -> None:
        """Look at everything: the lists are in, or the lease has become ours."""
        for key in list(self._workers):
            self.mark(key)

    async def start(self) -> None:
        """Begin: everything that is followed has been listed once."""
        self._running = True
        self.mark_all()

    async def stop(self) -> None:
        """End all workers."""
        self._running = False
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def oldest_wait(self) -> float:
        """Seconds that a dirty PDServing has waited for its reconcile, at most."""
        now = time.monotonic()
        return max((now - item.since for item in self._workers.values() if item.since), default=0.0)

    async def _work(self, key: Key) -> None:
        worker = self._workers[key]
        wait: float | None = None
        try:
            while self.store.parent(key) is not None:
                try:
                    await asyncio.wait_for(worker.dirty.wait(), wait)
                    await asyncio.sleep(settle(worker.thought))
                except TimeoutError:
                    log.debug("%s/%s: a wake-up is due", *key)
                worker.dirty.clear()
                wait = await self._safely(key, worker)
                worker.since = time.monotonic() if worker.dirty.is_set() else None
        finally:
            self._tasks.pop(key, None)
            self._workers.pop(key, None)

    async def _safely(self, key: Key, worker: Worker) -> float:
        """One round; seconds until the next one at the latest."""
        try:
            return await self.once(key, worker)
        except errors.NotLeading:
            return self._settings.lease.seconds
        except errors.Throttled as error:
            log.info("%s/%s: asked to wait %.0f s: %s", *key, error.after, error.message)
            await asyncio.sleep(error.after)  # whatever changes meanwhile
            return 0.0
        except errors.OperatorError as error:
            log.warning("%s/%s: %s", *key, error.message)
        except TRANSIENT as error:
            log.warning("%s/%s: %s", *key, error or type(error).__name__)
        except Exception:
            # A fault of ours in one object must not end the others' service.
            log.exception("%s/%s: the round failed", *key)
        return 5.0

    async def once(self, key: Key, worker: Worker | None = None) -> float:
        """Observe, plan, act, tell. Returns seconds until the next look at the latest."""
        worker = worker or self._workers.setdefault(key, Worker())
        parent = self.store.parent(key)
        if parent is None or parent["metadata"].get("deletionTimestamp"):
            return self._settings.resync_seconds
        if not self._leads():
            raise errors.NotLeading("watching only")
        meta = parent["metadata"]
        owner = Owner(meta["name"], meta["namespace"], meta["uid"])
        worker.serve(owner.uid)
        generation = int(meta.get("generation") or 0)
        self.rounds += 1
        try:
            wanted = spec.parse(parent["spec"])
        except errors.SpecError as error:
            problem = Problem(error.reason, error.message)
            told = status.refused(generation, problem, parent.get("status") or {}, self._clock())
            await self._tell(parent, owner, told, worker)
            return self._settings.resync_seconds
        desired = Desired(owner, generation, parent["spec"], wanted, self._settings)
        observed = await self._observe(key, owner, worker)
        if observed.orphans:
            observed, wait = await self._adopt(observed, key, owner, worker)
            if wait:
                return wait
        began = time.monotonic()
        decided = plan(observed, desired, self._clock())
        worker.thought = time.monotonic() - began
        makes = any(isinstance(item, Create | MakeSecret) for item in decided.actions)
        if makes and not await self._is_there(owner):
            return self._settings.resync_seconds
        again = await self._executor.carry_out(
            decided.actions, owner, worker.ledger, worker.secret[1]
        )
        if any(isinstance(item, MakeSecret) for item in decided.actions):
            worker.secret = (False, b"", 0.0)
        if again and not await self._is_there(owner):
            return self._settings.resync_seconds
        told = status.status(observed, desired, decided, parent.get("status") or {}, self._clock())
        await self._tell(parent, owner, told, worker)
        return 1.0 if again else self._until(decided, worker)

    def _until(self, decided: Plan, worker: Worker) -> float:
        probe = self._settings.probe_seconds
        waits = [self._settings.resync_seconds, probe if decided.unsettled else 10 * probe]
        if decided.wake is not None:
            waits.append(max(0.05, decided.wake - self._clock()))
        now = self._clock()
        held = [failure.until for failure in worker.ledger.failures.values()]
        waits += [until - now for until in held if until > now]
        return min(waits)

    async def _is_there(self, owner: Owner) -> bool:
        """Whether the PDServing exists: asked before anything is made, and when a write met with
        something gone.

        kopf may never tell that it went: its watch was down, and its next list says nothing of it.
        """
        key = owner.namespace, owner.name
        try:
            live = await self._api.get(names.KIND, *key)
        except errors.Missing:
            log.info("%s/%s: it is gone", *key)
            self.store.drop_parent(key, owner.uid)
            return False
        if live["metadata"]["uid"] == owner.uid:
            return True
        log.info("%s/%s: it was deleted and made again", *key)
        self.store.put_parent(live)
        return False

    async def _adopt(
        self, observed: Observed, key: Key, owner: Owner, worker: Worker
    ) -> tuple[Observed, float]:
        """Adopt orphans; (what is observed then, seconds to wait in place of the round).

        A round that took what serves for absent would make it anew: it waits, but not for ever,
        for what somebody refuses to let us adopt.
        """
        adoptions, ledger = ownership.adoptions(observed, self._clock()), worker.ledger
        await self._executor.carry_out(adoptions, owner, ledger, b"")
        if adoptions:
            worker.secret = (False, b"", 0.0)
        observed = await self._observe(key, owner, worker)
        wait = ownership.wait(observed, self._clock())
        return observed, wait

    def _sorted(self, key: Key, owner: Owner, worker: Worker) -> Belongings:
        owned = self.store.owned(key)
        objects = {place: obj for place, (obj, _) in owned.objects.items()}
        if worker.secret_object is not None:
            objects["Secret", names.control_secret(owner.name)] = worker.secret_object
        return ownership.sort(
            owner,
            (pod for pod, _ in owned.pods.values()),
            (pod for pod, _ in owned.routers.values()),
            (pod for pod, _ in owned.warmups.values()),
            objects,
            owned.controllers,
        )

    async def _observe(self, key: Key, owner: Owner, worker: Worker) -> Observed:
        await self._read_secret(owner, worker)
        await self._probe(self._sorted(key, owner, worker), worker)
        mine, now = self._sorted(key, owner, worker), self._clock()
        routers = mine.routers
        draining = {pod.name for pod in mine.pods.values() if pod.draining}
        fresh = 2 * self._settings.probe_seconds
        uids = {name: pod.uid for name, pod in mine.pods.items()}
        same = {name: uid for name, uid in uids.items() if worker.asked.get(name) == uid}
        return Observed(
            pods=tuple(mine.pods.values()),
            revisions=mine.revisions(owner.name),
            objects=mine.objects,
            orphans=mine.orphans,
            others=mine.others,
            endpoints=mine.endpoints,
            states={
                name: state
                for name, (state, at, uid) in worker.states.items()
                if uids.get(name) == uid
                and now - at <= (fresh if name in draining else STATE_SECONDS)
            },
            routers=tuple(view.of(same) for view in worker.views),
            routers_ready=sum(router.ready for router in routers),
            routers_waiting={item.name: item.waits for item in routers if item.waits},
            routers_unscheduled={
                item.name: item.unscheduled for item in routers if item.unscheduled
            },
            warmups=tuple(mine.warmups),
            secret=worker.secret[0],
            failures=dict(worker.ledger.failures),
        )

    async def _read_secret(self, owner: Owner, worker: Worker) -> None:
        there, _, at = worker.secret
        now = self._clock()
        if there and now - at < SECRET_SECONDS:
            return
        try:
            live = await self._api.get("Secret", owner.namespace, names.control_secret(owner.name))
        except errors.Missing:
            worker.secret, worker.secret_object = (False, b"", now), None
            return
        worker.secret_object = {"kind": "Secret", "metadata": live["metadata"]}
        ours = ownership.whose(live, owner) is Whose.OURS
        text = base64.b64decode((live.get("data") or {}).get("hmac.key", ""))
        try:
            worker.secret = (ours, bytes.fromhex(text.decode()), now)
        except ValueError:
            worker.secret = (ours, b"", now)

    async def _probe(self, mine: Belongings, worker: Worker) -> None:
        """Ask routers and leaders, unless they were asked just now."""
        now = self._clock()
        if now - worker.probed < 0.8 * self._settings.probe_seconds:
            return
        leaders = [
            (pod.name, pod.ip)
            for pod in mine.pods.values()
            if pod.leader and pod.started and pod.ip and not pod.failed
        ]
        routers = [(pod.name, pod.ip) for pod in mine.routers if pod.ready and pod.ip]
        key, uids = worker.secret[1], {name: pod.uid for name, pod in mine.pods.items()}
        states, views = await self._prober.look(leaders, routers, key)
        worker.probed = self._clock()
        worker.views, worker.asked = views, uids
        worker.states |= {n: (state, worker.probed, uids[n]) for n, state in states.items()}
        for name in set(worker.states) - set(mine.pods):
            del worker.states[name]

    async def _tell(self, parent: Object, owner: Owner, told: Object, worker: Worker) -> None:
        """Write the status where it differs, and an Event for each condition that changed."""
        before = parent.get("status") or {}
        if told == before:
            return
        if not self._leads():
            raise errors.NotLeading("the lease is not ours; the status was not written")
        gone = dict.fromkeys(set(before) - set(told))
        patch = {"metadata": {"uid": owner.uid}, "status": {**gone, **told}}
        try:
            written = await self._api.merge(
                names.KIND, owner.namespace, owner.name, patch, subresource="status"
            )
        except (errors.Conflict, errors.Missing):
            await self._is_there(owner)
            return
        says = [
            Say(reason, f"{kind}: {message}", warning=kind == "Degraded" and reason != "AsExpected")
            for kind, reason, message in status.transitions(before, told)
        ]
        await self._executor.carry_out(says, owner, worker.ledger, b"")
        self.store.put_parent(written, told=True)
