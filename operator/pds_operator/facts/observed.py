"""What stands in the cluster, as frozen facts: the input of `plan` and `status`. Pure."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]

NO_PROOF = "the warm-up wrote no proof"


@dataclass(frozen=True, slots=True)
class Proof:
    """What a warm-up container wrote to its termination message (warm-up.md)."""

    manifest: str
    compiled: int = 0
    reused: int = 0
    seconds: float = 0.0
    error: str = ""
    volume: str = ""
    """What was wrong with the cache volume, where the pod had to compile for itself."""
    eager: tuple[str, ...] = ()
    """What runs without being compiled, and is no part of the manifest."""
    target: str = ""
    """What it compiled for, as `sm_90`; empty where it says nothing of it."""


STEADY_SECONDS = 60.0
"""A sidecar that has crashed again and again, and has run for so long, is taken to stay."""


@dataclass(frozen=True, slots=True)
class Pod:
    """One engine pod; times are Unix seconds by the API server's clock (`clocks`)."""

    name: str
    uid: str
    role: str
    group: int
    attempt: int
    rank_pod: int
    revision: str
    created: float
    key: str = ""
    """The id of its control key; the first key has none."""
    owner: str = ""
    """The uid of its controller."""
    owned_by: str = ""
    """What that is, as `PDServing.pdserving.io/chat`."""
    managed: bool = True
    """Its labels say that we made it."""
    wrong: tuple[tuple[str, str], ...] = ()
    """The labels that follow from its name and volumes, where it has others."""
    phase: str = "Pending"
    ended: bool = False
    """The engine has ended, or an init container has failed, whatever sidecars live on."""
    disrupted: str = ""
    """What node, kubelet or scheduler ended it for: no fault of its own."""
    deleting: bool = False
    gone_by: float | None = None
    """When its grace ends, where it is being deleted."""
    lost: bool = False
    """Its node does not answer."""
    node: str = ""
    gang: str = ""
    """The kind of its group's PodGroup, if it has one."""
    draining: bool = False
    drain_deadline: float | None = None
    failures: int = 0
    disruptions: int = 0
    """Attempts in a row before this one that ended by a disruption."""
    scheduled: bool = False
    unscheduled: str = ""
    """What the scheduler says."""
    unprepared: float | None = None
    """Since when its node has set up no volumes and network for it; None: it has, or is silent."""
    waits: str = ""
    """Why a container of it cannot start."""
    fallen: str = ""
    """A container beside the engine that has ended, while the engine runs."""
    crashes: str = ""
    """A native sidecar that ends again and again."""
    runs_since: float | None = None
    """Since when that runs; None: it does not now."""
    unready: float | None = None
    """Since when its containers are not ready; None: they are, or nobody says."""
    started: bool = False
    """The engine container has passed its startup probe once."""
    containers_ready: bool = False
    ready: bool = False
    ready_since: float | None = None
    routable: bool | None = None
    """The readiness gate; None: never set."""
    ip: str = ""
    exit_code: int | None = None
    """Of the container that failed, else of the engine that ended well; None: nobody saw an end."""
    failed_at: float | None = None
    message: str = ""
    """The termination message of the container that failed, else why it waits."""
    proof: Proof | None = None

    @property
    def failed(self) -> bool:
        """It will never run again."""
        return self.ended or self.phase in ("Failed", "Succeeded")

    @property
    def end(self) -> str:
        """How it has ended, for people."""
        return "ended" if self.exit_code is None else f"ended with exit code {self.exit_code}"

    def crashing(self, now: float) -> bool:
        """What crashed in it may do so again: it is ready for moments."""
        steady = self.runs_since is not None and now - self.runs_since >= STEADY_SECONDS
        return bool(self.crashes) and not steady

    @property
    def leader(self) -> bool:
        """It serves HTTP for its group."""
        return self.rank_pod == 0


@dataclass(frozen=True, slots=True)
class WarmupPod:
    """A pod of the Job that compiles a revision."""

    name: str
    revision: str
    owner: str = ""
    """The uid of its Job."""
    scheduled: bool = False
    unscheduled: str = ""
    """What the scheduler says."""
    waits: str = ""
    """Why a container of it cannot start."""
    error: str = ""
    """Why a container of it failed."""
    volume: str = ""
    """What was wrong with the cache volume, where nothing was compiled for that."""
    created: float = 0.0
    unprepared: float | None = None
    """Since when its node has set up no volumes and network for it; None: it has, or is silent."""
    targets: frozenset[str] = frozenset()
    """What its steps compiled for, by their proofs."""


@dataclass(frozen=True, slots=True)
class RouterPod:
    """A router's pod."""

    name: str
    ip: str
    ready: bool
    owned_by: str = ""
    """Its controller, as `ReplicaSet.apps/chat-router-5d4f`."""
    owner: str = ""
    """The controller's uid."""
    waits: str = ""
    """Why a container of it cannot start."""
    unscheduled: str = ""
    """What the scheduler says."""
    created: float = 0.0
    ends: bool = False
    """It has ended or is about to: its Deployment has another for it."""
    unready: float | None = None
    """Since when it is not ready, as far as that is known."""
    restarts: int = 0
    fell: str = ""
    """How its container ended last."""


@dataclass(frozen=True, slots=True)
class LeaderState:
    """What a leader answered to /pds/state. The router keeps a `GroupState` of its own."""

    in_flight: int = 0
    transfers: int = 0
    draining: bool = False
    manifest: str = ""
    fingerprint: str = ""
    compiles_after_ready: int = 0
    protocol: int = 1
    """Of the messages between groups; with `fingerprint` and `key_id` what a pair agrees in."""
    key_id: str = ""
    """Of its control key, the first one too; engines of the release before do not report it."""
    clock: float = 0.0
    """Seconds that its clock is ahead of ours, where it is so far off that it shows."""


@dataclass(frozen=True, slots=True)
class RouterView:
    """What a ready router's /pds/backends answered: whether it would choose each leader pod."""

    pod: str
    routable: Mapping[str, bool]
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Requests sent to each leader pod and those that failed by its fault, since it is known."""
    uids: Mapping[str, str] = field(default_factory=dict)
    """By leader pod, where the router reports them."""
    clocks: Mapping[str, float] = field(default_factory=dict)
    """By leader pod, seconds that its clock is ahead of the router's, where that shows."""

    def of(self, uids: Mapping[str, str]) -> "RouterView":
        """What it says of the pods of these names and uids; earlier ones had the same names."""
        own = {name for name, uid in uids.items() if self.uids.get(name, uid) == uid}
        own &= set(self.routable)
        if len(own) == len(self.routable):
            return self
        return RouterView(
            self.pod,
            {name: good for name, good in self.routable.items() if name in own},
            {name: count for name, count in self.counts.items() if name in own},
            clocks={name: ahead for name, ahead in self.clocks.items() if name in own},
        )


@dataclass(frozen=True, slots=True)
class Waited:
    """What a rollout has used up of its progress deadline."""

    since: float
    """The progress that it counts from, in Unix seconds."""
    seconds: float
    at: float
    """When that was written down."""


@dataclass(frozen=True, slots=True)
class GaveWay:
    """A Job that was to compile a revision, and does not."""

    reason: str
    message: str
    at: float
    """When, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Revision:
    """A stored revision: `data` is what `render.engine.render` made, never rendered again."""

    digest: str
    number: int
    uid: str
    data: Object
    failed: str = ""
    created: float = 0.0
    targeted: float | None = None
    served: float | None = None
    """When it last stood whole."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Groups of each role when it did; empty where nobody noted them."""
    waited: Waited | None = None
    gave_way: Mapping[str, GaveWay] = field(default_factory=dict)
    """By the name of a Job: its pods compile in its place."""

    @property
    def key(self) -> str:
        """The id of its pods' control key; the first key has none."""
        return str(self.data.get("key") or "")

    @property
    def since(self) -> float:
        """When it last became the target."""
        return max(self.created, self.targeted or 0.0)


@dataclass(frozen=True, slots=True)
class ScopeFailure:
    """Why a scope is held back until `until`: a write of it was refused, or a wait ran out."""

    reason: str
    message: str
    count: int
    until: float
    since: float = 0.0
    """When the first of these attempts was refused."""


@dataclass(frozen=True, slots=True)
class KeySecret:
    """The Secret of a control key."""

    uid: str
    asked: str = ""
    """What the PDServing's annotation rotate-keys said when it was made."""


@dataclass(frozen=True, slots=True)
class ControlKeys:
    """The control keys, by id: the first has none, "". Nothing in here is secret."""

    secrets: Mapping[str, KeySecret] = field(default_factory=dict)
    """Those that are there and ours."""
    ring: frozenset[str] | None = None
    """What the ring holds; None: there is no ring."""
    active: str | None = None
    """The key of new revisions, as the ring says."""
    held: frozenset[str] = frozenset()
    """Those by which we can sign, and of which a ring can be made."""
    cache: bool = False
    """The Secret of the key of a compile cache of our own is there."""
    seals: frozenset[str] = frozenset()
    """Secrets of the keys of compile caches on claims that are there, by their names."""
    awaited: frozenset[str] = frozenset()
    """Those whose Secret is still to be adopted, or a predecessor's that goes: neither is lost."""


@dataclass(frozen=True)
class Observed:
    """Everything a round is decided on: what is ours, but for `orphans` and `others`."""

    pods: tuple[Pod, ...] = ()
    revisions: Mapping[str, Revision] = field(default_factory=dict)
    objects: Mapping[tuple[str, str], Object] = field(default_factory=dict)
    """Owned objects of other kinds, by (kind, name)."""
    orphans: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """What carries our labels and has no controller: uids by (kind, name)."""
    others: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    """What carries our name and is not ours: `ownership.Whose` by (kind, name)."""
    endpoints: int = 0
    """Ready routers that the endpoint's Service lists."""
    states: Mapping[str, LeaderState] = field(default_factory=dict)
    """By leader pod; only those that answered."""
    routers: tuple[RouterView, ...] = ()
    """Those that are ready and answered."""
    router_pods: tuple[RouterPod, ...] = ()
    warmups: tuple[WarmupPod, ...] = ()
    keys: ControlKeys | None = None
    """None: nobody has looked."""
    failures: Mapping[str, ScopeFailure] = field(default_factory=dict)
    """By the scope of the action that was refused."""

    @property
    def routers_ready(self) -> int:
        """Router pods that are."""
        return sum(router.ready for router in self.router_pods)

    def lost(self, key: str) -> bool:
        """Whether the Secret of this control key is gone: no pod that mounts it can start."""
        keys = self.keys
        return keys is not None and key not in keys.secrets and key not in keys.awaited

    def held(self, scope: str, now: float) -> bool:
        """Whether the last attempt at `scope` failed so lately that it is not tried again yet."""
        failure = self.failures.get(scope)
        return failure is not None and failure.until > now


def seconds(text: str | None) -> float | None:
    """An RFC 3339 time as Unix seconds."""
    return datetime.datetime.fromisoformat(text).timestamp() if text else None


def rfc3339(moment: float) -> str:
    """Unix seconds as the API server writes times."""
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
