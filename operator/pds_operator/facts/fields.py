"""Owners of fields: what the API server notes in metadata.managedFields. Pure.

An object is POSTed, so that a stranger's of the same name is never taken. What a POST sets is owned
by an entry of operation Update, and an apply prunes only what our entry of operation Apply owns.
So the one is moved into the other, as k8s.io/client-go/util/csaupgrade does for kubectl.
"""

from typing import Any

from pds_operator import names

Object = dict[str, Any]


def unmoved(obj: Object) -> bool:
    """Whether fields of `obj` are owned by a POST or a patch of ours."""
    return any(_ours(entry, "Update") for entry in obj["metadata"].get("managedFields") or [])


def slim(entries: list[Object]) -> list[Object]:
    """What `unmoved` needs: our entries, without the fields, which are larger than the object."""
    keep = ("manager", "operation")
    return [
        {key: entry[key] for key in keep}
        for entry in entries
        if _ours(entry, "Update") or _ours(entry, "Apply")
    ]


def yielded(wanted: Object) -> tuple[str, ...]:
    """A field that `wanted` leaves to others, and that an apply must not set back to its default.

    Replicas that are taken out of a spec stay as they are, for whoever scales from then on.
    """
    left_out = wanted["kind"] == "Deployment" and "replicas" not in wanted["spec"]
    return ("f:spec", "f:replicas") if left_out else ()


def owns(obj: Object, path: tuple[str, ...]) -> bool:
    """Whether an entry of ours has the field at `path`."""
    return bool(path) and any(
        _has(entry["fieldsV1"], path)
        for entry in obj["metadata"].get("managedFields") or []
        if _ours(entry, "Update") or _ours(entry, "Apply")
    )


def moved(entries: list[Object], without: tuple[str, ...] = ()) -> list[Object]:
    """`entries` with ours of operation Update moved into the one of operation Apply.

    The field at `without` becomes nobody's.

    Of several API versions the one that was applied counts, else the newest: fields of another
    cannot be shown to be the same.
    """
    updates = [entry for entry in entries if _ours(entry, "Update")]
    applies = [entry for entry in entries if _ours(entry, "Apply")]
    if not (updates or applies):
        return entries
    into = (applies or updates)[0]
    for entry in updates:
        if entry is not into and entry.get("apiVersion") == into.get("apiVersion"):
            into = {**into, "fieldsV1": _union(into["fieldsV1"], entry["fieldsV1"])}
    others = [entry for entry in entries if entry not in updates and entry not in applies]
    left = _less(into["fieldsV1"], without) if without else into["fieldsV1"]
    return [*others, {**into, "operation": "Apply", "fieldsV1": left}]


def others(obj: Object) -> list[str]:
    """The names of everybody else who owns a field of `obj`, by its status or otherwise."""
    entries = obj["metadata"].get("managedFields") or []
    return sorted({str(entry.get("manager")) for entry in entries} - {names.MANAGER, "None"})


def _ours(entry: Object, operation: str) -> bool:
    """Of the object itself: who sets its status owns nothing that is applied."""
    return (
        entry.get("manager") == names.MANAGER
        and entry.get("operation") == operation
        and not entry.get("subresource")
    )


def _union(one: Object, other: Object) -> Object:
    """Two sets of fields as FieldsV1 spells them: tries of steps."""
    result = dict(one)
    for step, below in other.items():
        result[step] = _union(result.get(step, {}), below)
    return result


def _has(trie: Object, path: tuple[str, ...]) -> bool:
    return not path or (path[0] in trie and _has(trie[path[0]], path[1:]))


def _less(trie: Object, path: tuple[str, ...]) -> Object:
    """`trie` without what is at `path`."""
    first, rest = path[0], path[1:]
    kept = {step: below for step, below in trie.items() if step != first}
    if rest and first in trie and (below := _less(trie[first], rest)):
        kept[first] = below
    return kept
