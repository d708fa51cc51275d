"""One PDServing after another, level-triggered: observe → plan → one round → status.

A task per PDServing sleeps until something of it changes or a plan's wake-up is due. What is kept
between its rounds is a `RoundMemory`: a restart misses nothing of it, but for how often a refused
write was tried.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from pds_operator import errors, names, schema
from pds_operator.decide import ownership, status
from pds_operator.decide.actions import (
    Create,
    KeepRing,
    MakeCacheKey,
    MakeKey,
    MakeSeal,
    Problem,
    Say,
)
from pds_operator.decide.plan import Desired, Plan, plan
from pds_operator.facts.observed import Observed
from pds_operator.render.owner import Owner
from pds_operator.run.api import TRANSIENT, Api
from pds_operator.run.cluster import Key, Store
from pds_operator.run.execute import Executor, Together
from pds_operator.run.observing import Observer, RoundMemory
from pds_operator.run.probe import Prober
from pds_operator.run.vault import READ_SECONDS
from pds_operator.settings import Settings

Object = dict[str, Any]

log = logging.getLogger("pds_operator.reconcile")

SETTLE_SECONDS, SETTLE_MOST = 0.02, 1.0
"""Changes come in bursts: one look for all of one. At least and at most."""
SETTLE_TIMES = 20
"""In between, so many times as long as the last plan took, which grows with the pods."""
MOST_ASKED = 64
"""Characters of a request to rotate keys by which it differs from others."""


def settle(thought: float) -> float:
    """Seconds from a change to the next round, where the last plan took `thought` seconds."""
    return min(SETTLE_MOST, max(SETTLE_SECONDS, SETTLE_TIMES * thought))


class Reconciler:
    """Runs a task for each PDServing."""

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
        self._settings = settings
        self._leads = leads
        self._clock = clock
        self._memories: dict[Key, RoundMemory] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._running = False
        self.store = Store(self.mark)
        self.rounds = 0
        self._executor = Executor(api, self.store, prober, leads, clock, together)
        self._observer = Observer(api, self.store, prober, settings, clock)

    def mark(self, key: Key) -> None:
        """Something of `key` changed."""
        memory = self._memories.get(key)
        if memory is None:
            if self.store.parent(key) is None:
                return
            memory = self._memories[key] = RoundMemory()
        if memory.since is None:
            memory.since = time.monotonic()
        memory.dirty.set()
        if self._running and key not in self._tasks:
            self._tasks[key] = asyncio.create_task(self._work(key), name=f"reconcile {key}")

    def mark_all(self) -> None:
        """Look at everything: the lists are in, or the lease has become ours."""
        for key in list(self._memories):
            self.mark(key)

    async def start(self) -> None:
        """Begin: everything that is followed has been listed once."""
        self._running = True
        self.mark_all()

    async def stop(self) -> None:
        """End all tasks."""
        self._running = False
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def oldest_wait(self) -> float:
        """Seconds that a dirty PDServing has waited for its reconcile, at most."""
        now = time.monotonic()
        return max(
            (now - item.since for item in self._memories.values() if item.since), default=0.0
        )

    async def _work(self, key: Key) -> None:
        memory = self._memories[key]
        wait: float | None = None
        try:
            while self.store.parent(key) is not None:
                try:
                    await asyncio.wait_for(memory.dirty.wait(), wait)
                    await asyncio.sleep(settle(memory.thought))
                except TimeoutError:
                    log.debug("%s/%s: a wake-up is due", *key)
                memory.dirty.clear()
                wait = await self._safely(key, memory)
                memory.since = time.monotonic() if memory.dirty.is_set() else None
        finally:
            self._tasks.pop(key, None)
            self._memories.pop(key, None)

    async def _safely(self, key: Key, memory: RoundMemory) -> float:
        """One round; seconds until the next one at the latest."""
        try:
            return await self.once(key, memory)
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

    async def once(self, key: Key, memory: RoundMemory | None = None) -> float:
        """Observe, plan, act, write the status; seconds until the next look at the latest."""
        memory = memory or self._memories.setdefault(key, RoundMemory())
        parent = self.store.parent(key)
        if parent is None or parent["metadata"].get("deletionTimestamp"):
            return self._settings.resync_seconds
        if not self._leads():
            raise errors.NotLeading("watching only")
        meta = parent["metadata"]
        owner = Owner(meta["name"], meta["namespace"], meta["uid"])
        memory.serve(owner.uid)
        generation = int(meta.get("generation") or 0)
        self.rounds += 1
        try:
            wanted = schema.parse(parent["spec"])
        except errors.SpecError as error:
            problem = Problem(error.reason, error.message)
            before = parent.get("status") or {}
            new_status = status.refused(generation, problem, before, self._clock())
            await self._write_status(parent, owner, new_status, memory)
            return self._settings.resync_seconds
        rotate = (meta.get("annotations") or {}).get(names.ROTATE, "")[:MOST_ASKED]
        desired = Desired(owner, generation, parent["spec"], wanted, self._settings, rotate)
        observed = await self._observer.look(key, owner, memory)
        if observed.orphans:
            observed, wait = await self._adopt(observed, key, owner, memory)
            if wait:
                return wait
        began = time.monotonic()
        decided = plan(observed, desired, self._clock())
        memory.thought = time.monotonic() - began
        makes = any(
            isinstance(item, Create | MakeKey | KeepRing | MakeCacheKey | MakeSeal)
            for item in decided.actions
        )
        if makes and not await self._is_there(owner):
            return self._settings.resync_seconds
        again = await self._executor.carry_out(decided.actions, owner, memory.backoff, memory.vault)
        if again and not await self._is_there(owner):
            return self._settings.resync_seconds
        before = parent.get("status") or {}
        new_status = status.status(observed, desired, decided, before, self._clock())
        await self._write_status(parent, owner, new_status, memory)
        return 1.0 if again else self._until(decided, memory)

    def _until(self, decided: Plan, memory: RoundMemory) -> float:
        probe = self._settings.probe_seconds
        waits = [READ_SECONDS, probe if decided.unsettled else 10 * probe]
        if decided.wake is not None:
            waits.append(max(0.05, decided.wake - self._clock()))
        now = self._clock()
        held = [failure.until for failure in memory.backoff.failures.values()]
        waits += [until - now for until in held if until > now]
        return min(waits)

    async def _is_there(self, owner: Owner) -> bool:
        """Whether the PDServing exists: asked before anything is made, and when a write met with
        something gone.

        kopf may never report it: its watch was down, and its next list says nothing of it.
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
        self, observed: Observed, key: Key, owner: Owner, memory: RoundMemory
    ) -> tuple[Observed, float]:
        """Adopt orphans; (what is observed then, seconds to wait in place of the round).

        A round that took what serves for absent would make it anew: it waits, but not for ever,
        for what somebody refuses to let us adopt.
        """
        adoptions, backoff = ownership.adoptions(observed, self._clock()), memory.backoff
        await self._executor.carry_out(adoptions, owner, backoff, memory.vault)
        if adoptions:
            memory.vault.forget()
        observed = await self._observer.look(key, owner, memory)
        wait = ownership.wait(observed, self._clock())
        return observed, wait

    async def _write_status(
        self, parent: Object, owner: Owner, new_status: Object, memory: RoundMemory
    ) -> None:
        """Write the status where it differs, and an Event for each condition that changed."""
        before = parent.get("status") or {}
        if new_status == before:
            return
        if not self._leads():
            raise errors.NotLeading("the lease is not ours; the status was not written")
        gone = dict.fromkeys(set(before) - set(new_status))
        patch = {"metadata": {"uid": owner.uid}, "status": {**gone, **new_status}}
        try:
            written = await self._api.merge(
                names.KIND, owner.namespace, owner.name, patch, subresource="status"
            )
        except (errors.Conflict, errors.Missing):
            await self._is_there(owner)
            return
        says = [
            Say(reason, f"{kind}: {message}", warning=kind == "Degraded" and reason != "AsExpected")
            for kind, reason, message in status.transitions(before, new_status)
        ]
        await self._executor.carry_out(says, owner, memory.backoff, memory.vault)
        self.store.put_parent(written, ours=True)
