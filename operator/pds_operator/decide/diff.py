"""Whether an object must be made, written again, or left alone. Pure.

An object is left alone when it carries the digest of what we want and nothing that we want has
been changed since. By the digest a field that we no longer want differs from one that the API
server filled in; the comparison shows a change by somebody else.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from typing import Any

from pds_operator import names
from pds_operator.facts import fields
from pds_operator.facts.reading import owner_uid

Object = dict[str, Any]

CHANGING = frozenset(
    {
        *("Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"),
        *("RoleBinding", "ServiceAccount", "ConfigMap"),
    }
)
"""Kinds that are applied again. All others are made once, and patched at most: nothing of what we
set on them can or may be changed afterwards."""

SUFFIXES = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{unit: Decimal(10) ** (3 * (i + 1)) for i, unit in enumerate(("k", "M", "G", "T", "P", "E"))},
    **{unit: Decimal(1024) ** (i + 1) for i, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi"))},
}


EXACT: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "Service": (("spec", "selector"),),
    "Deployment": (
        ("spec", "selector"),
        ("spec", "strategy"),
        ("spec", "template", "metadata", "labels"),
        ("spec", "template", "spec", "nodeSelector"),
    ),
    "PodDisruptionBudget": (("spec",),),
    "NetworkPolicy": (("spec",),),
    "RoleBinding": (("subjects",), ("roleRef",)),
    "ConfigMap": (("data",), ("binaryData",)),
}
"""Maps in which a key more than we want does harm, by kind. Elsewhere it is a default, or a label
or annotation of somebody who has a use for it. Lists are ours whole, everywhere."""

IDENTITY = ("mountPath", "devicePath", "name", "containerPort", "port", "ip")
"""What identifies the items of a list: the first of these that an item has."""


class ObjectVerdict(Enum):
    """What to do about one object."""

    CREATE = "create"
    APPLY = "apply"
    TAKE_OVER = "take over"
    """Ours, but fields of it are owned by a write that no apply ever prunes."""
    ADOPT = "adopt"
    """A claim that was retained, and is to go with us from now on."""
    KEEP = "keep"


def stamped(wanted: Object) -> Object:
    """`wanted` with its own digest as an annotation."""
    text = json.dumps(wanted, sort_keys=True, separators=(",", ":"))
    result = copy.deepcopy(wanted)
    annotations = result["metadata"].setdefault("annotations", {})
    annotations[names.APPLIED] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return result


def verdict(wanted: Object, live: Object | None) -> ObjectVerdict:
    """What to do about `wanted` (stamped), given the object of ours that has its name."""
    if live is None:
        return ObjectVerdict.CREATE
    if live["metadata"].get("deletionTimestamp"):
        return ObjectVerdict.KEEP
    if not changes(live):
        owned = wanted["metadata"].get("ownerReferences") and not owner_uid(live)
        return ObjectVerdict.ADOPT if owned else ObjectVerdict.KEEP
    if fields.unmoved(live):
        return ObjectVerdict.TAKE_OVER
    return ObjectVerdict.APPLY if difference(wanted, live) else ObjectVerdict.KEEP


def changes(obj: Object) -> bool:
    """Whether `obj` is applied again, and not made once."""
    return obj["kind"] in CHANGING and not (obj["kind"] == "ConfigMap" and obj.get("immutable"))


def difference(wanted: Object, live: Object) -> str:
    """The first field in which `live` is not as `wanted`; empty when all is as it should be."""
    missing = _missing(live, _unowned(wanted), ())
    return missing or next(
        (
            more
            for path in EXACT.get(wanted["kind"], ())
            if (more := _more(_at(live, path), _at(wanted, path), path))
        ),
        "",
    )


def covers(live: Any, wanted: Any) -> bool:
    """Whether everything in `wanted` stands in `live`, which may hold more (defaults)."""
    return not _missing(live, wanted, ())


def excess(wanted: Object, live: Object) -> Object:
    """A merge patch that takes away what `live` has more than `wanted`; empty: there is nothing.

    An apply leaves what others have added: items of lists, keys of maps in EXACT.
    """
    trimmed = _trimmed(live, _unowned(wanted), (), EXACT.get(wanted["kind"], ()))
    return _patch(live, trimmed)


def lists(wanted: Object, live: Object) -> Object:
    """A merge patch with those lists of `wanted` that are others in `live`; empty: there are none.

    An apply identifies items by their keys: a port that somebody renumbered is another one, and
    ours beside it has the same name.
    """
    found: Object = {}
    for key, value in wanted.items():
        there = live.get(key)
        if isinstance(value, dict) and isinstance(there, dict) and key != "metadata":
            if below := lists(value, there):
                found[key] = below
        elif isinstance(value, list) and _missing(there, value, ()):
            found[key] = value
    return found


def _unowned(obj: Object) -> Object:
    """Without its owners: `ownership` looks at ours, and others may be there, too."""
    meta = {key: value for key, value in obj["metadata"].items() if key != "ownerReferences"}
    return {**obj, "metadata": meta}


def _missing(live: Any, wanted: Any, path: tuple[str, ...]) -> str:
    """Where `wanted` does not stand in `live`."""
    if live is None:  # empty values are not stored
        return _spelled(path) if wanted else ""
    if isinstance(wanted, dict):
        if not isinstance(live, dict):
            return _spelled(path)
        found = (_missing(live.get(key), value, (*path, key)) for key, value in wanted.items())
        return next(filter(None, found), "")
    if isinstance(wanted, list):
        if not isinstance(live, list) or len(live) != len(wanted):
            return _spelled(path)
        steps = [f"[{_identity(item) or index}]" for index, item in enumerate(wanted)]
        items = zip(live, wanted, steps, strict=True)
        found = (_missing(one, other, (*path, step)) for one, other, step in items)
        return next(filter(None, found), "")
    return "" if bool(live == wanted) or _same_quantity(live, wanted) else _spelled(path)


def _more(live: Any, wanted: Any, path: tuple[str, ...]) -> str:
    """Where `live` has a key that `wanted` has not."""
    if isinstance(live, dict):
        known = wanted if isinstance(wanted, dict) else {}
        found = (
            _more(value, known[key], (*path, key)) if key in known else _spelled((*path, key))
            for key, value in live.items()
            if value not in (None, {}, [], "")
        )
        return next(filter(None, found), "")
    if isinstance(live, list) and isinstance(wanted, list):
        pairs = zip(live, wanted, strict=False)
        found = (_more(*pair, (*path, f"[{index}]")) for index, pair in enumerate(pairs))
        return next(filter(None, found), "")
    return _spelled(path) if live and not wanted else ""


def _trimmed(
    live: Any,
    wanted: Any,
    path: tuple[str, ...],
    exact: tuple[tuple[str, ...], ...],
    whole: bool = False,
) -> Any:
    """`live` without what it has more than `wanted`; `whole`: maps are exact from here on."""
    whole = whole or path in exact
    if isinstance(live, dict) and (isinstance(wanted, dict) or whole):
        known = wanted if isinstance(wanted, dict) else {}
        return {
            key: _trimmed(value, known.get(key), (*path, key), exact, whole)
            for key, value in live.items()
            if key in known or not (whole or (*path, key) in exact)
        }
    if isinstance(live, list) and isinstance(wanted, list):
        kept = [next((item for item in live if _same(item, one)), None) for one in wanted]
        if None in kept:
            return live
        return [_trimmed(*pair, path, exact, whole) for pair in zip(kept, wanted, strict=True)]
    return live


def _same(live: Any, wanted: Any) -> bool:
    """Whether two items are of the same name."""
    known = _identity(wanted)
    return _identity(live) == known if known else covers(live, wanted)


def _identity(item: Any) -> str:
    if not isinstance(item, dict):
        return ""
    return next((f"{key}={item[key]}" for key in IDENTITY if key in item), "")


def _patch(live: Any, wanted: Any) -> Object:
    """A merge patch from `live` to `wanted`, which has nothing that `live` has not."""
    found: Object = {key: None for key in live if key not in wanted}
    for key, value in wanted.items():
        if value != live[key]:
            found[key] = _patch(live[key], value) if isinstance(value, dict) else value
    return found


def _at(obj: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        obj = obj.get(key) if isinstance(obj, dict) else None
    return obj


def _spelled(path: tuple[str, ...]) -> str:
    return ".".join(path).replace(".[", "[") or "all of it"


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
