"""A small model of who owns which field: the API server's metadata.managedFields.

After sigs.k8s.io/structured-merge-diff, by three rules:
  POST    every field that is sent belongs to the sender's entry of operation Update
  patch   every field that it changes or adds does, and to nobody else any more
  apply   what is sent belongs to the sender's entry of operation Apply, by force to nobody of
          another mind; what that entry had and is not sent is removed, unless another entry has it
Lists of things with names merge by name; other lists, and selectors, are one field each. Sets of
fields are tuples of steps here, and tries in the objects, spelled as FieldsV1 spells them.
"""

import copy
import json
from typing import Any

Object = dict[str, Any]
Path = tuple[str, ...]

SERVERS = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp")
UNOWNED = (*SERVERS, "managedFields", "deletionTimestamp")
ATOMIC = frozenset({"selector", "nodeSelector", "podSelector", "namespaceSelector", "roleRef"})
"""Maps that are one field (+mapType=atomic, +structType=atomic)."""
NAMED = frozenset({"containers", "initContainers", "env", "volumes", "imagePullSecrets"})


def created(obj: Object, manager: str) -> Object:
    """`obj` as a POST of `manager` leaves it."""
    return _with(copy.deepcopy(obj), {(manager, "Update"): paths(obj)})


def updated(live: Object, new: Object, manager: str) -> Object:
    """`new`, which a patch of `manager` makes of `live`; it may set managedFields itself."""
    before, after = paths(live), paths(new)
    owners = _owners(new) or _owners(live)
    changed = {p for p in after if p not in before or _at(new, p) != _at(live, p)}
    for entry, owned in owners.items():
        owners[entry] = (owned & after) - changed
    if changed:
        own = (manager, "Update")
        owners[own] = owners.get(own, set()) | changed
    return _with(new, owners)


def applied(live: Object, sent: Object, manager: str) -> Object:
    """What a forced apply of `manager` makes of `live`."""
    owners = _owners(live)
    last, now = owners.pop((manager, "Apply"), set()), paths(sent)
    merged = _merged(live, sent, "")
    others = set().union(*owners.values()) if owners else set()
    for path in sorted(last - now, key=len):
        if not _is_key(path) and not any(other[: len(path)] == path for other in others):
            _remove(merged, path)
    there = paths(merged)
    was = paths(live)
    for entry, owned in owners.items():
        lost = {p for p in now if p in was and _at(live, p) != _at(merged, p)}
        owners[entry] = (owned & there) - lost
    owners[manager, "Apply"] = now
    return _with(merged, owners)


def owned(obj: Object, manager: str, operation: str) -> set[Path]:
    """The fields of one entry."""
    return _owners(obj).get((manager, operation), set())


def paths(obj: Object) -> set[Path]:
    """Every field that `obj` sets."""
    found: set[Path] = set()
    for key, value in obj.items():
        if key == "metadata":
            mine = {k: v for k, v in value.items() if k not in UNOWNED}
            if mine:
                _walk(mine, ("f:metadata",), "metadata", found)
        elif key not in ("apiVersion", "kind", "status"):
            _walk(value, (f"f:{key}",), key, found)
    return found


def _walk(value: Any, path: Path, name: str, found: set[Path]) -> None:
    if isinstance(value, dict) and value and name not in ATOMIC:
        for key, below in value.items():
            _walk(below, (*path, f"f:{key}"), key, found)
    elif value == {} and name in ("annotations", "labels"):
        return  # not stored
    elif isinstance(value, list) and (steps := _steps(value, name)):
        for step, item in zip(steps, value, strict=True):
            found.add((*path, step))
            for key, below in item.items():
                _walk(below, (*path, step, f"f:{key}"), key, found)
    else:
        found.add(path)


def _steps(items: list[Any], name: str) -> list[str]:
    """How the items of a list are identified; none: the list is one field."""
    keys = _keys(items, name)
    if not keys:
        return []
    identities = [{key: item.get(key, "TCP") for key in keys} for item in items]
    return [f"k:{json.dumps(each, sort_keys=True, separators=(',', ':'))}" for each in identities]


def _keys(items: list[Any], name: str) -> tuple[str, ...]:
    if not items or not all(isinstance(item, dict) for item in items):
        return ()
    if name in NAMED:
        return ("name",)
    if name == "volumeMounts":
        return ("mountPath",)
    if name == "ownerReferences":
        return ("uid",)
    if name == "ports":
        return ("containerPort" if "containerPort" in items[0] else "port", "protocol")
    return ()


def _merged(live: Any, sent: Any, name: str) -> Any:
    if isinstance(live, dict) and isinstance(sent, dict) and name not in ATOMIC:
        result = dict(live)
        for key, value in sent.items():
            if not (name == "metadata" and key == "resourceVersion"):
                result[key] = _merged(live.get(key), value, key)
        return result
    if isinstance(live, list) and isinstance(sent, list) and (ours := _steps(sent, name)):
        theirs = dict(zip(_steps(live, name), live, strict=False))
        mine = [_merged(theirs.get(s), item, "") for s, item in zip(ours, sent, strict=True)]
        return [*mine, *(copy.deepcopy(item) for step, item in theirs.items() if step not in ours)]
    return copy.deepcopy(sent)


def _is_key(path: Path) -> bool:
    """Whether it identifies an item of a list, and so stays as long as the item does."""
    item = path[-2] if len(path) > 1 else ""
    return item.startswith("k:") and path[-1][2:] in json.loads(item[2:])


def _child(value: Any, step: str, name: str) -> Any:
    if step.startswith("f:"):
        return value.get(step[2:]) if isinstance(value, dict) else None
    items = value if isinstance(value, list) else []
    return dict(zip(_steps(items, name), items, strict=False)).get(step)


def _at(obj: Any, path: Path) -> Any:
    name = ""
    for step in path:
        obj, name = _child(obj, step, name), step.removeprefix("f:")
    return obj if path[-1].startswith("f:") else None  # of an item only that it is there


def _remove(obj: Any, path: Path) -> None:
    """Take a field away, and maps and lists that are empty then."""
    first, rest = path[0], path[1:]
    if rest:
        name = first.removeprefix("f:")
        below = _child(obj, first, "")
        if below is None:
            return
        if rest[0].startswith("k:"):
            _remove_item(below, rest, name)
        else:
            _remove(below, rest)
        if below not in ({}, []):
            return
    if isinstance(obj, dict):
        obj.pop(first[2:], None)


def _remove_item(items: list[Any], path: Path, name: str) -> None:
    index = dict(zip(_steps(items, name), range(len(items)), strict=False)).get(path[0])
    if index is None:
        return
    if len(path) == 1:
        del items[index]
    else:
        _remove(items[index], path[1:])


def _owners(obj: Object) -> dict[tuple[str, str], set[Path]]:
    found = {}
    for entry in obj["metadata"].get("managedFields") or []:
        if not entry.get("subresource"):
            found[entry["manager"], entry["operation"]] = _decoded(entry["fieldsV1"], ())
    return found


def _with(obj: Object, owners: dict[tuple[str, str], set[Path]]) -> Object:
    entries = [
        {
            "manager": manager,
            "operation": operation,
            "apiVersion": obj.get("apiVersion", "v1"),
            "fieldsType": "FieldsV1",
            "fieldsV1": _encoded(owned),
        }
        for (manager, operation), owned in owners.items()
        if owned
    ]
    return {**obj, "metadata": {**obj["metadata"], "managedFields": entries}}


def _encoded(owned: set[Path]) -> Object:
    trie: Object = {}
    for path in sorted(owned):
        place = trie
        for step in path:
            place = place.setdefault(step, {})
        if path[-1].startswith("k:"):
            place["."] = {}
    return trie


def _decoded(trie: Object, path: Path) -> set[Path]:
    if not trie:
        return {path} if path else set()
    found: set[Path] = set()
    for step, below in trie.items():
        found |= {path} if step == "." else _decoded(below, (*path, step))
    return found
