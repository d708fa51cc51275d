"""Whether an object must be made, written again, or left alone. Pure.

An object is left alone when it carries the digest of what we want and nothing that we want has
been changed since. The digest tells a field that we no longer want from one that the API server
filled in; the comparison tells a change by somebody else.
"""

import copy
import hashlib
import json
import re
from decimal import Decimal
from enum import Enum
from typing import Any

from pds_operator import names
from pds_operator.facts import owner_uid

Object = dict[str, Any]

IMMUTABLE = frozenset({"ControllerRevision", "Job", "PersistentVolumeClaim"})
"""Made once: nothing of what we set on them can be changed afterwards."""


SUFFIXES = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{unit: Decimal(10) ** (3 * (i + 1)) for i, unit in enumerate(("k", "M", "G", "T", "P", "E"))},
    **{unit: Decimal(1024) ** (i + 1) for i, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"))},
}


class Verdict(Enum):
    """What to do about one object."""

    CREATE = "create"
    APPLY = "apply"
    KEEP = "keep"
    FOREIGN = "foreign"


def stamped(wanted: Object) -> Object:
    """`wanted` with its own digest as an annotation."""
    text = json.dumps(wanted, sort_keys=True, separators=(",", ":"))
    result = copy.deepcopy(wanted)
    annotations = result["metadata"].setdefault("annotations", {})
    annotations[names.APPLIED] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return result


def verdict(wanted: Object, live: Object | None, uid: str) -> Verdict:
    """What to do about `wanted` (stamped), given the object of its name and our owner's `uid`."""
    if live is None:
        return Verdict.CREATE
    if not ours(live, uid):
        return Verdict.FOREIGN
    if live["metadata"].get("deletionTimestamp") or live["kind"] in IMMUTABLE:
        return Verdict.KEEP
    if live["kind"] == "ConfigMap" and live.get("immutable"):
        return Verdict.KEEP
    return Verdict.KEEP if covers(live, wanted) else Verdict.APPLY


def ours(live: Object, uid: str) -> bool:
    """Whether the controller of `live` has `uid`; a retained claim is told by its labels alone."""
    owner = owner_uid(live)
    if owner:
        return owner == uid
    labels = live["metadata"].get("labels") or {}
    return (
        live.get("kind") == "PersistentVolumeClaim"
        and labels.get("app.kubernetes.io/managed-by") == names.MANAGER
    )


def covers(live: Any, wanted: Any) -> bool:
    """Whether everything in `wanted` stands in `live`, which may hold more (defaults)."""
    if live is None:
        return not wanted  # empty values are not stored
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            covers(live.get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return (
            isinstance(live, list) and len(live) == len(wanted) and all(map(covers, live, wanted))
        )
    return bool(live == wanted) or _same_quantity(live, wanted)


def _same_quantity(live: Any, wanted: Any) -> bool:
    """Quantities are stored in canonical form: 0.5 comes back as 500m."""
    try:
        return _quantity(live) == _quantity(wanted)
    except (KeyError, ArithmeticError):
        return False


def _quantity(value: Any) -> Decimal:
    match = re.fullmatch(r"([+-]?[0-9.]+)([a-zA-Z]*)", str(value))
    if match is None or isinstance(value, bool):
        raise KeyError(value)
    return Decimal(match[1]) * SUFFIXES[match[2]]
