"""Names, labels and annotations: the one place that spells them (docs/contract.md)."""

import hashlib
import re
from typing import Final

GROUP: Final = "pdserving.io"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "PDServing"
PLURAL: Final = "pdservings"
ROLE_KIND: Final = "PDServingRole"
ROLE_PLURAL: Final = "pdservingroles"
MANAGER: Final = "pds-operator"

MANAGED_BY: Final = "app.kubernetes.io/managed-by"
SERVICE_NAME: Final = "kubernetes.io/service-name"
"""On EndpointSlices."""
NAME: Final = f"{GROUP}/name"
ROLE: Final = f"{GROUP}/role"
GROUP_INDEX: Final = f"{GROUP}/group"
ATTEMPT: Final = f"{GROUP}/attempt"
RANK_POD: Final = f"{GROUP}/rank-pod"
REVISION: Final = f"{GROUP}/revision"
RENDEZVOUS: Final = f"{GROUP}/meeting-point"
"""On leaders of groups of several pods: the others find it by its name."""
KV: Final = f"{GROUP}/kv"
DRAINING: Final = f"{GROUP}/draining"
KEY: Final = f"{GROUP}/key"
"""The id of the control key that a pod mounts or a Secret holds; the first key goes without."""

DRAIN_DEADLINE: Final = f"{GROUP}/drain-deadline"
"""RFC 3339, on the pods of a group that drains."""
FAILURES: Final = f"{GROUP}/failures"
"""Failures in a row before this attempt of a group: what its backoff follows from."""
DISRUPTIONS: Final = f"{GROUP}/disruptions"
"""Ends in a row before this attempt of a group that were no fault of its own: backoff alone."""
FAILED: Final = f"{GROUP}/failed"
"""On a ControllerRevision: why it is not rolled out any more."""
TARGETED: Final = f"{GROUP}/targeted"
"""On a ControllerRevision, RFC 3339: since when it is the target, where it is not the newest."""
SERVED: Final = f"{GROUP}/served"
"""On a ControllerRevision, RFC 3339: when it last stood whole."""
GROUPS: Final = f"{GROUP}/groups"
"""On a ControllerRevision, JSON: groups of each role when it last stood whole."""
WAITED: Final = f"{GROUP}/waited"
"""On a ControllerRevision, JSON: what is used up of its rollout's progress deadline."""
GAVE_WAY: Final = f"{GROUP}/gave-way"
"""On a ControllerRevision, JSON: which warm-up Jobs gave way to init containers, why and when."""
APPLIED: Final = f"{GROUP}/applied"
"""Digest of the object as it was last applied: a field that is removed changes it, and a default
does not."""
ROTATE: Final = f"{GROUP}/rotate-keys"
"""On a PDServing: each new value asks for a new control key, once. On the key's Secret: the value
that there was when it was made."""
ACTIVE: Final = f"{GROUP}/active"
"""On the ring of keys: the name of the Secret whose key new revisions have."""
TARGET: Final = f"{GROUP}/target"
"""On a Job that compiles for a kind of GPU, and on its pod: which, as `sm_90`."""
CLAIM: Final = f"{GROUP}/claim"
"""On the Secret by which PDServings seal a compile cache together: the claim of its volume."""
GANG: Final = f"{GROUP}/gang"
"""On pods whose group has a PodGroup: of which scheduler."""
ROUTABLE: Final = f"{GROUP}/routable"
"""The readiness gate of leaders."""

ROLES: Final = ("prefill", "decode", "unified")
HTTP_PORT: Final = 8000
METRICS_PORT: Final = 9090
LONGEST: Final = 253
"""Characters of a Secret's name."""
CONFIG_ERROR: Final = 78
"""Exit code of a container whose configuration cannot work (sysexits' EX_CONFIG)."""


def common_labels(pds: str, role: str) -> dict[str, str]:
    """The labels of everything that belongs to one role (or "router", "shared") of `pds`."""
    return {
        "app.kubernetes.io/name": "pdserving",
        "app.kubernetes.io/instance": pds,
        "app.kubernetes.io/component": role,
        MANAGED_BY: MANAGER,
        "app.kubernetes.io/part-of": "pdserving",
        NAME: pds,
        ROLE: role,
    }


def group_name(pds: str, role: str, group: int, attempt: int) -> str:
    """`chat-p-0-1`: the second attempt of prefill group 0."""
    return f"{pds}-{role[0]}-{group}-{attempt}"


def pod_name(pds: str, role: str, group: int, attempt: int, rank_pod: int) -> str:
    """`chat-p-0-1-0`: its leader. At most 63 characters, as CEL caps `pds` at 40."""
    return f"{group_name(pds, role, group, attempt)}-{rank_pod}"


def pod_place(pds: str, pod: str) -> tuple[str, int, int, int] | None:
    """(role, group, attempt, rank pod) of an engine pod of that name; None: it is none."""
    found = re.fullmatch(rf"{re.escape(pds)}-([a-z])-(\d+)-(\d+)-(\d+)", pod)
    role = next((role for role in ROLES if found and role[0] == found[1]), None)
    if found is None or role is None:
        return None
    return role, int(found[2]), int(found[3]), int(found[4])


def ranks_service(pds: str) -> str:
    """The headless Service by which the ranks of a group find each other."""
    return f"{pds}-ranks"


def router(pds: str) -> str:
    """The router's Deployment, ConfigMap, ServiceAccount and RoleBinding."""
    return f"{pds}-router"


def control_secret(pds: str, key: str = "") -> str:
    """The Secret of CURVE and HMAC keys: the first has no id in its name."""
    return f"{pds}-control-{key}" if key else f"{pds}-control"


def keyring(pds: str) -> str:
    """The Secret of the HMAC keys of all groups, which routers mount."""
    return f"{pds}-keyring"


def cache_key(pds: str) -> str:
    """The Secret of the key that seals a compile cache that is on no claim."""
    return f"{pds}-cache-key"


def seal(claim: str) -> str:
    """The Secret of the key that seals the compile cache on `claim`, whoever uses it."""
    name = f"pds-cache-key-{claim}"
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(claim.encode()).hexdigest()[:10]
    return f"{name[: LONGEST - len(digest) - 1].rstrip('-.')}-{digest}"


def seal_labels() -> dict[str, str]:
    """The labels of such a Secret: it belongs to no PDServing."""
    return {
        "app.kubernetes.io/name": "pdserving",
        "app.kubernetes.io/component": "cache-key",
        "app.kubernetes.io/part-of": "pdserving",
        MANAGED_BY: MANAGER,
    }


def cache_claim(pds: str) -> str:
    """The claim of the compile cache's volume."""
    return f"{pds}-cache"


def warmup(pds: str, digest: str, target: str = "", role: str = "") -> str:
    """A Job that compiles a revision: for the node that it runs on, or for the GPU `target`.

    The first Job of a kind has no `role`. Others begin with that role.
    """
    what = target.replace("_", "-") or "warmup"
    return f"{pds}-{digest}-{what}" + (f"-{role[0]}" if role else "")


def role_object(pds: str, role: str) -> str:
    """The PDServingRole by which `role` is scaled."""
    return f"{pds}-{role}"


def revision(pds: str, digest: str) -> str:
    """A ControllerRevision, and the ConfigMap that lives and dies with it."""
    return f"{pds}-{digest}"
