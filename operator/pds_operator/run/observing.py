"""What one round sees: what is followed, the Secrets, and what pods answer, sorted by whose it is.

Beside it stands what is kept for one PDServing between rounds.
"""

import asyncio
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from pds_operator.decide import ownership
from pds_operator.decide.ownership import Belongings
from pds_operator.facts.observed import LeaderState, Observed, RouterView
from pds_operator.facts.reading import owner_uid, revision_facts
from pds_operator.render.owner import Owner
from pds_operator.run.api import Api
from pds_operator.run.cluster import Key, Owned, Store
from pds_operator.run.execute import Backoff
from pds_operator.run.probe import Prober
from pds_operator.run.vault import Vault
from pds_operator.settings import Settings

STATE_SECONDS = 30.0
"""How long a leader's last answer stands for status, when it does not answer just now."""


@dataclass(slots=True)
class RoundMemory:
    """What is kept for one PDServing between rounds. A restart begins with nothing of it."""

    uid: str = ""
    """Of the PDServing: nothing of a predecessor's is believed."""
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    since: float | None = None
    """When it became dirty, by the monotonic clock."""
    thought: float = 0.0
    """Seconds that the last round took to plan."""
    backoff: Backoff = field(default_factory=Backoff)
    states: dict[str, tuple[LeaderState, float, str]] = field(default_factory=dict)
    """By leader: its last answer, when that came, and its uid. A name may be another pod's soon."""
    views: list[RouterView] = field(default_factory=list)
    asked: dict[str, str] = field(default_factory=dict)
    """The uids of the pods that there were when routers were asked."""
    probed: float = 0.0
    vault: Vault = field(default_factory=Vault)

    def serve(self, uid: str) -> None:
        """Serve the PDServing of `uid`: what is known of a predecessor of its name is forgotten."""
        if uid == self.uid:
            return
        new = RoundMemory(uid, self.dirty, self.since)
        for each in dataclasses.fields(self):
            setattr(self, each.name, getattr(new, each.name))


class Observer:
    """Looks."""

    def __init__(
        self,
        api: Api,
        store: Store,
        prober: Prober,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._api = api
        self._store = store
        self._prober = prober
        self._settings = settings
        self._clock = clock

    async def look(self, key: Key, owner: Owner, memory: RoundMemory) -> Observed:
        """Everything that the next round is decided on.

        Raises:
            ApiError, or one of `api.TRANSIENT`: the Secrets could not be read.
        """
        await self._open(self._store.owned(key), owner, memory)
        await self._probe(self._sorted(key, owner, memory), memory)
        mine, now = self._sorted(key, owner, memory), self._clock()
        draining = {pod.name for pod in mine.pods.values() if pod.draining}
        fresh = 2 * self._settings.probe_seconds
        uids = {name: pod.uid for name, pod in mine.pods.items()}
        same = {name: uid for name, uid in uids.items() if memory.asked.get(name) == uid}
        return Observed(
            pods=tuple(mine.pods.values()),
            revisions=mine.revisions(owner.name),
            objects=mine.objects,
            orphans=mine.orphans,
            others=mine.others,
            endpoints=mine.endpoints,
            states={
                name: state
                for name, (state, at, uid) in memory.states.items()
                if uids.get(name) == uid
                and now - at <= (fresh if name in draining else STATE_SECONDS)
            },
            routers=tuple(view.of(same) for view in memory.views),
            router_pods=tuple(mine.routers),
            warmups=tuple(mine.warmups),
            keys=memory.vault.facts,
            failures=dict(memory.backoff.failures),
        )

    def _sorted(self, key: Key, owner: Owner, memory: RoundMemory) -> Belongings:
        owned = self._store.owned(key)
        return ownership.sort(
            owner,
            (pod for pod, _ in owned.pods.values()),
            (pod for pod, _ in owned.routers.values()),
            (pod for pod, _ in owned.warmups.values()),
            {place: obj for place, (obj, _) in owned.objects.items()} | memory.vault.objects,
            owned.controllers,
        )

    async def _open(self, owned: Owned, owner: Owner, memory: RoundMemory) -> None:
        """Read the Secrets that pods and revisions name: ours, and those of no controller.

        What is to be adopted has keys as well, and these are adopted with it.
        """
        near = (owner.uid, "")
        in_use = {pod.key for pod, _ in owned.pods.values() if pod.owner in near}
        stored = [
            revision_facts(obj, owner.name)
            for (kind, _), (obj, _) in owned.objects.items()
            if kind == "ControllerRevision" and owner_uid(obj) in near
        ]
        revisions = {item.digest: item for item in stored}
        await memory.vault.look(self._api, owner, in_use, revisions, self._clock())

    async def _probe(self, mine: Belongings, memory: RoundMemory) -> None:
        """Ask routers and leaders, unless they were asked just now."""
        now = self._clock()
        if now - memory.probed < 0.8 * self._settings.probe_seconds:
            return
        leaders = [
            (pod.name, pod.ip)
            for pod in mine.pods.values()
            if pod.leader and pod.started and pod.ip and not pod.failed
        ]
        routers = [(pod.name, pod.ip) for pod in mine.routers if pod.ready and pod.ip]
        keys = {name: memory.vault.key(pod.key) for name, pod in mine.pods.items()}
        uids = {name: pod.uid for name, pod in mine.pods.items()}
        states, views = await self._prober.look(leaders, routers, keys)
        memory.probed = self._clock()
        memory.views, memory.asked = views, uids
        memory.states |= {n: (state, memory.probed, uids[n]) for n, state in states.items()}
        for name in set(memory.states) - set(mine.pods):
            del memory.states[name]
