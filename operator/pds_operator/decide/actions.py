"""What a plan consists of: writes as data, each safe to repeat after a crash. Pure.

`str(action)` is a short sentence: tests and `kubectl pds plan` read plans as lists of these.
`scope` ties actions together: when one is refused, later ones of its scope are skipped this round
and the scope is held back for a while.
"""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Create:
    """POST; an object of that name that is not ours is a NameTaken."""

    obj: Object
    scope: str

    def __str__(self) -> str:
        return f"create {self.obj['kind'].lower()} {self.obj['metadata']['name']}"


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply over an object that is ours, of this uid."""

    obj: Object
    uid: str
    scope: str

    def __str__(self) -> str:
        return f"apply {self.obj['kind'].lower()} {self.obj['metadata']['name']}"


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Let an apply prune what an earlier POST or patch of ours has set, and apply `obj`."""

    obj: Object
    uid: str
    scope: str

    def __str__(self) -> str:
        return f"take over {self.obj['kind'].lower()} {self.obj['metadata']['name']}"


@dataclass(frozen=True, slots=True)
class Adopt:
    """Set our ownerReference on an object with our labels that nothing controls."""

    kind: str
    name: str
    uid: str
    scope: str

    def __str__(self) -> str:
        return f"adopt {self.kind.lower()} {self.name}"


@dataclass(frozen=True, slots=True)
class Relabel:
    """Restore the labels that say which pod it is: somebody changed them."""

    pod: str
    uid: str
    labels: dict[str, str]
    scope: str

    def __str__(self) -> str:
        return f"relabel {self.pod}"


@dataclass(frozen=True, slots=True)
class MakeKey:
    """Make a control key. Random, so the executor's work and not the plan's, and so is its id.

    `first`: it is the first one, which has no id. `asked` is the request that it answers.
    """

    first: bool
    asked: str = ""
    scope: str = "keys"

    def __str__(self) -> str:
        return "make the first control key" if self.first else "make a control key"


@dataclass(frozen=True, slots=True)
class KeepRing:
    """Write these keys into the ring, and that `active` is the one of new revisions."""

    keys: frozenset[str]
    active: str
    scope: str = "keys"

    def __str__(self) -> str:
        return f"write the ring of {len(self.keys)} keys"


@dataclass(frozen=True, slots=True)
class MakeCacheKey:
    """Make the key of the compile cache; `copy`: of the first control key, where that is there."""

    copy: bool
    scope: str = "cache-key"

    def __str__(self) -> str:
        return "make the key of the compile cache"


@dataclass(frozen=True, slots=True)
class MakeSeal:
    """Make the key of the compile cache on a claim, for all PDServings that use it."""

    claim: str

    @property
    def scope(self) -> str:
        """Of its own: several PDServings may ask for it at once."""
        return f"seal/{self.claim}"

    def __str__(self) -> str:
        return f"make the key of the compile cache on {self.claim}"


@dataclass(frozen=True, slots=True)
class TryOut:
    """POST with dryRun=All: a podTemplate that the API server refuses becomes a condition."""

    obj: Object
    scope: str

    def __str__(self) -> str:
        return f"try out {self.obj['kind'].lower()} {self.obj['metadata']['name']}"


@dataclass(frozen=True, slots=True)
class Annotate:
    """Merge annotations into exactly this uid; None removes one."""

    kind: str
    name: str
    uid: str
    annotations: dict[str, str | None]
    scope: str

    def __str__(self) -> str:
        keys = ", ".join(key.rpartition("/")[2] for key in self.annotations)
        return f"note {keys} on {self.name}"


@dataclass(frozen=True, slots=True)
class Recover:
    """Restore the labels without which a ControllerRevision of ours is not seen."""

    metadata: Object
    scope: str

    def __str__(self) -> str:
        return f"recover {self.metadata['name']}"


@dataclass(frozen=True, slots=True)
class MarkDraining:
    """Label a pod so that no router chooses it, and its group is not replaced."""

    pod: str
    uid: str
    deadline: float
    scope: str

    def __str__(self) -> str:
        return f"drain {self.pod}"


@dataclass(frozen=True, slots=True)
class AskDrain:
    """POST /pds/drain to a leader, signed: it takes nothing new."""

    pod: str
    ip: str
    seconds: int
    scope: str
    key: str = ""
    """The id of the control key that the pod has."""

    def __str__(self) -> str:
        return f"ask {self.pod} to drain"


@dataclass(frozen=True, slots=True)
class SetGate:
    """Patch the readiness gate of a leader."""

    pod: str
    uid: str
    routable: bool
    scope: str

    def __str__(self) -> str:
        return f"{'route' if self.routable else 'unroute'} {self.pod}"


@dataclass(frozen=True, slots=True)
class ReportScale:
    """Write the status of a PDServingRole: what /scale and autoscalers read."""

    name: str
    uid: str
    status: Object
    scope: str

    def __str__(self) -> str:
        return f"report the scale of {self.name}: {self.status['replicas']}"


@dataclass(frozen=True, slots=True)
class Delete:
    """DELETE of exactly this uid; `grace` None leaves the object's own."""

    kind: str
    name: str
    uid: str
    scope: str
    grace: int | None = None

    def __str__(self) -> str:
        return f"delete {self.kind.lower()} {self.name}"


@dataclass(frozen=True, slots=True)
class Disband:
    """Delete the PodGroup of a group whose pods are deleted, if it is there and ours."""

    api_version: str
    name: str
    scope: str

    def __str__(self) -> str:
        return f"disband {self.name}"


@dataclass(frozen=True, slots=True)
class Hold:
    """Hold a scope back as if it had been refused: a wait that ran out."""

    scope: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"hold {self.scope}"


@dataclass(frozen=True, slots=True)
class Say:
    """Post an Event on the PDServing."""

    reason: str
    message: str
    warning: bool = False
    scope: str = "event"

    def __str__(self) -> str:
        return f"say {self.reason}"


Action = (
    Create
    | Apply
    | TakeOver
    | Adopt
    | Relabel
    | MakeKey
    | KeepRing
    | MakeCacheKey
    | MakeSeal
    | TryOut
    | Annotate
    | Recover
    | MarkDraining
    | AskDrain
    | SetGate
    | ReportScale
    | Delete
    | Disband
    | Hold
    | Say
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a person should know: a reason and a message of Degraded."""

    reason: str
    message: str


def group_scope(role: str, index: int) -> str:
    """The scope of all that is done to one group."""
    return f"group/{role}/{index}"


def object_scope(obj: Object) -> str:
    """The scope of one shared object."""
    return f"{obj['kind']}/{obj['metadata']['name']}"


def revision_scope(digest: str) -> str:
    """The scope of a revision's making."""
    return f"revision/{digest}"
