"""The real reconciler, run as a coroutine that is driven by hand: no event loop, no sleeping.

Every call of it pauses first. At a pause the world goes on, another replica acts, or the process
dies: then the coroutine is closed, and what it had not done yet is never done.
"""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from pds_operator import errors, names
from pds_operator.facts.observed import LeaderState, RouterView
from pds_operator.run import parents
from pds_operator.run.api import TRANSIENT, WATCH_TIMEOUT
from pds_operator.run.cluster import Store
from pds_operator.run.lease import Lease
from pds_operator.run.reconcile import SETTLE_SECONDS, Reconciler
from pds_operator.settings import Settings
from simulation.clock import Clock
from simulation.pausing import Pause, together
from simulation.server import NAMESPACE, ApiServer
from simulation.serving import SimulatedServing

Object = dict[str, Any]
KEY = (NAMESPACE, "chat")
UNFOLLOWED = ("Secret", "Lease")


class Disturbance:
    """What goes wrong between the operator and others, and how slow they are."""

    def __init__(self, lag: float) -> None:
        self.refusing = 0.0
        """Share of writes that are answered by 429."""
        self.timing_out = 0.0
        """Share of calls whose answer never comes, though some of them took effect."""
        self.deaf = 0.0
        """Share of questions to pods that are not answered."""
        self.lag = lag
        """Watch events arrive within so many seconds, in order."""


class SimulatedApi:
    """The methods of `pds_operator.run.api.Api` that reconciling uses."""

    def __init__(self, name: str, clock: Clock, server: ApiServer, trouble: Disturbance) -> None:
        self._name, self._clock, self._server, self._trouble = name, clock, server, trouble

    async def _call(self, act: Callable[[], Any], *, write: bool = True) -> Any:
        slow = self._clock.chance(0.02)
        await Pause(self._clock.between(0.3, 1.5) if slow else self._clock.between(0.001, 0.02))
        if write and self._clock.chance(self._trouble.refusing):
            raise errors.from_status(429, {"message": "too many requests"})
        if self._clock.chance(self._trouble.timing_out):
            if self._clock.chance(0.5):
                act()
            await Pause(2.0)
            raise TimeoutError
        return act()

    async def get(self, kind: str, namespace: str, name: str) -> Object:
        live: Object = await self._call(lambda: self._server.get(kind, name), write=False)
        return {**_own(live), "spec": {**live["spec"]}} if kind == "Lease" else _own(live)

    async def list(self, kind: str, namespace: str | None) -> tuple[list[Object], str]:
        def answered() -> tuple[list[Object], str]:
            return self._server.all(kind), str(self._server.version)

        found: tuple[list[Object], str] = await self._call(answered, write=False)
        return found

    async def create(self, obj: Object, *, dry_run: bool = False) -> Object:
        if dry_run:
            return obj
        made: Object = await self._call(lambda: self._server.create(self._name, obj))
        return _own(made)

    async def apply(self, obj: Object) -> Object:
        kind, name = obj["kind"], obj["metadata"]["name"]
        made: Object = await self._call(
            lambda: self._server.patch(self._name, kind, name, obj, "apply")
        )
        return _own(made)

    async def merge(
        self, kind: str, namespace: str, name: str, patch: Object, subresource: str = ""
    ) -> Object:
        made: Object = await self._call(lambda: self._server.patch(self._name, kind, name, patch))
        return _own(made)

    async def strategic(
        self, kind: str, namespace: str, name: str, patch: Object, subresource: str
    ) -> Object:
        made: Object = await self._call(lambda: self._server.set_condition(self._name, name, patch))
        return made

    async def replace(self, obj: Object) -> Object:
        made: Object = await self._call(lambda: self._server.replace(self._name, obj))
        return made

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str, grace: int | None = None
    ) -> None:
        await self._call(lambda: self._server.delete(self._name, kind, name, uid, grace))


class Questions:
    """The methods of `pds_operator.run.probe.Prober` that reconciling uses."""

    def __init__(self, clock: Clock, serving: SimulatedServing, trouble: Disturbance) -> None:
        self._clock, self._serving, self._trouble = clock, serving, trouble

    async def look(
        self,
        leaders: list[tuple[str, str]],
        routers: list[tuple[str, str]],
        keys: Mapping[str, bytes],
    ) -> tuple[dict[str, LeaderState], list[RouterView]]:
        await Pause(self._clock.between(0.001, 0.02))
        states, views = self._serving.states(leaders), self._serving.views(routers)
        if self._trouble.deaf:
            heard = [name for name in states if not self._clock.chance(self._trouble.deaf)]
            states = {name: states[name] for name in heard}
            views = [view for view in views if not self._clock.chance(self._trouble.deaf)]
        return states, views

    async def drain(self, ip: str, seconds: int, key: bytes) -> str:
        await Pause(self._clock.between(0.001, 0.02))
        if self._clock.chance(self._trouble.deaf):
            return "TimeoutError"
        return self._serving.drain(ip, seconds, key)


class SimulatedOperator:
    """One replica: lists, watches, lease and rounds, until it dies and starts anew."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        server: ApiServer,
        serving: SimulatedServing,
        settings: Settings,
        trouble: Disturbance,
    ) -> None:
        self.name = name
        self._clock, self._server, self._serving = clock, server, serving
        self._settings, self._trouble = settings, trouble
        self.life = 0
        self.rounds = 0
        self.reconciler: Reconciler | None = None
        self._round: Coroutine[Any, Any, Any] | None = None
        self._leasing: Coroutine[Any, Any, Any] | None = None
        self._listing: Coroutine[Any, Any, Any] | None = None
        self._heard: dict[str, float] = {}
        self._listed_at: dict[str, int] = {}
        """By kind, the version of the last list after a gap: no watch sends older things again."""
        self._due: float | None = None
        server.watchers.append(self._watched)

    # Its life -----------------------------------------------------------------------------

    def start(self) -> None:
        """A new process: it knows nothing but what it lists."""
        clock = self._clock
        self.life += 1
        self._client = client = SimulatedApi(self.name, clock, self._server, self._trouble)
        self.lease = Lease(client, self._settings, lambda: clock.now, lambda: clock.now)  # type: ignore[arg-type]
        self.lease.identity = f"{self.name}/{self.life}"
        self.reconciler = Reconciler(
            client,  # type: ignore[arg-type]
            Questions(clock, self._serving, self._trouble),  # type: ignore[arg-type]
            self._settings,
            lambda: self.lease.held,
            lambda: clock.now,
            together,
        )
        self._heard, self._listed_at, self._due = {}, {}, None
        for obj in self._server.objects.values():
            if obj["kind"] not in UNFOLLOWED:
                self._hear(self.life, "PUT", obj)
        clock.note(f"{self.name} starts")
        self._renew(self.life)
        self._look_for_parents(self.life)
        self.soon()

    def die(self) -> None:
        """Killed, wherever it was."""
        self._clock.note(f"{self.name} dies")
        self.reconciler = None
        for work in (self._round, self._leasing, self._listing):
            if work is not None:
                work.close()
        self._round = self._leasing = self._listing = None

    # Watches ------------------------------------------------------------------------------

    def _watched(self, what: str, obj: Object) -> None:
        if self.reconciler is None or obj["kind"] in UNFOLLOWED:
            return
        clock, kind = self._clock, obj["kind"]
        lag = self._trouble.lag
        at = clock.now - clock.now % lag + lag + 0.01  # in bursts, as from a busy connection
        self._heard[kind] = at = max(at, self._heard.get(kind, 0.0))
        clock.after(at - clock.now, self._hear, self.life, what, obj)

    def _hear(self, life: int, what: str, obj: Object) -> None:
        if self.reconciler is None or life != self.life:
            return
        if int(obj["metadata"]["resourceVersion"]) <= self._listed_at.get(obj["kind"], -1):
            return
        store = self.reconciler.store
        if obj["kind"] == names.KIND and what == "GONE":
            store.drop_parent(KEY, obj["metadata"]["uid"])
        elif obj["kind"] == names.KIND:
            store.put_parent(_own(obj))
        elif what == "GONE":
            store.drop(obj)
        elif obj["metadata"].get("labels"):
            store.put(_own(obj))
        self._look()

    def gap(self, kind: str, seconds: float) -> None:
        """410 Gone: the watch of `kind` sends nothing for a while, then all is listed anew.

        The list is as old as its answer took to come. kopf's, of PDServings, reports no deletion.
        """
        if self.reconciler is not None:
            self._clock.note(f"{self.name}: the watch of {kind} breaks off")
            self._heard[kind] = self._clock.now + seconds
            self._clock.after(seconds - 0.1, self._list, self.life, kind)

    def _list(self, life: int, kind: str) -> None:
        items = self._server.all(kind)
        self._listed_at[kind] = self._server.version
        self._clock.after(0.05, self._listed, life, kind, items)

    def _listed(self, life: int, kind: str, items: list[Object]) -> None:
        if self.reconciler is None or life != self.life:
            return
        if kind == names.KIND:
            for item in items:
                self.reconciler.store.put_parent(_own(item))
        else:
            mine = [_own(item) for item in items if _labelled(item)]
            self.reconciler.store.replace(kind, NAMESPACE, mine)
        self._look()

    def fall_silent(self, kind: str) -> None:
        """Packets of this watch are dropped both ways: it goes on where it was, when that shows."""
        if self.reconciler is not None:
            self._clock.note(f"{self.name}: the watch of {kind} falls silent")
            self._heard[kind] = self._clock.now + (WATCH_TIMEOUT.sock_read or 0.0)

    # The list of PDServings ---------------------------------------------------------------

    def _look_for_parents(self, life: int) -> None:
        if self.reconciler is None or life != self.life:
            return
        if self._listing is None:
            self._listing = self._list_parents(self.reconciler.store)
            self._drive_list(life)
        wait = 2 * self._settings.resync_seconds * self._clock.between(0.8, 1.2)
        self._clock.after(wait, self._look_for_parents, life)

    async def _list_parents(self, store: Store) -> None:
        try:
            await parents.look(self._client, store, [])  # type: ignore[arg-type]
        except (errors.ApiError, *TRANSIENT):
            pass  # the next one shows it
        self._look()

    def _drive_list(self, life: int) -> None:
        if self._listing is None or life != self.life:
            return
        try:
            self._clock.after(self._listing.send(None), self._drive_list, life)
        except StopIteration:
            self._listing = None

    # The lease ----------------------------------------------------------------------------

    def _renew(self, life: int) -> None:
        if self.reconciler is None or life != self.life or not self._settings.lease.enabled:
            return
        if self._leasing is None:
            self._leasing = self._hold_lease()
            self._drive_lease(life)
        self._clock.after(self._settings.lease.seconds / 5, self._renew, life)

    async def _hold_lease(self) -> None:
        before = self.lease.held
        try:
            await self.lease.once()
        except (errors.ApiError, *TRANSIENT):
            pass  # the next one shows it
        if self.lease.held and not before:
            self._clock.note(f"{self.name} leads")
            self.soon()

    def _drive_lease(self, life: int) -> None:
        if self._leasing is None or life != self.life:
            return
        try:
            self._clock.after(self._leasing.send(None), self._drive_lease, life)
        except StopIteration:
            self._leasing = None

    # Rounds -------------------------------------------------------------------------------

    def _look(self) -> None:
        """What was heard may have made the object dirty: as `Reconciler._work` does."""
        reconciler = self.reconciler
        if reconciler is None or not self._dirty(reconciler):
            return
        self.soon()

    def _dirty(self, reconciler: Reconciler) -> bool:
        memory = reconciler._memories.get(KEY)
        return memory is not None and memory.dirty.is_set()

    def soon(self, delay: float = SETTLE_SECONDS) -> None:
        """A round after `delay`, unless one is due before."""
        at = self._clock.now + delay
        if self._round is None and (self._due is None or at < self._due):
            self._due = at
            self._clock.after(delay, self._begin, self.life, at)

    def _begin(self, life: int, due: float) -> None:
        reconciler = self.reconciler
        if reconciler is None or life != self.life or due != self._due or self._round is not None:
            return
        self._due = None
        memory = reconciler._memories.get(KEY)
        if memory is None:
            return
        if reconciler.store.parent(KEY) is None:
            del reconciler._memories[KEY]  # as the end of `Reconciler._work` does
            return
        memory.dirty.clear()
        self.begins(self)
        self.rounds += 1
        self._round = self._safely(reconciler)
        self._drive(life)

    def begins(self, operator: "SimulatedOperator") -> None:
        """The judge's: a round begins."""

    async def _safely(self, reconciler: Reconciler) -> float:
        """As `Reconciler._safely`, but that a fault of ours ends the run."""
        try:
            return await reconciler.once(KEY)
        except errors.NotLeading:
            return self._settings.lease.seconds
        except (errors.OperatorError, *TRANSIENT) as error:
            self._clock.note(f"{self.name}: {error or type(error).__name__}")
            return 5.0

    def _drive(self, life: int) -> None:
        if self._round is None or life != self.life:
            return
        try:
            self._clock.after(self._round.send(None), self._drive, life)
        except StopIteration as done:
            self._round = None
            again = self.reconciler is not None and self._dirty(self.reconciler)
            self.soon(SETTLE_SECONDS if again else done.value)


def _own(obj: Object) -> Object:
    """As it comes over the wire: what a reader takes out of its metadata is there for all others.

    Pods and revisions, of which there are many, are read and left as they are.
    """
    if obj["kind"] in ("Pod", "ControllerRevision"):
        return obj
    return {**obj, "metadata": {**obj["metadata"]}}


def _labelled(obj: Object) -> bool:
    return bool(obj["metadata"].get("labels"))
