"""What a revision is: a digest of what changes a pod (rollouts.md). Pure."""

import hashlib
import json
from typing import Any

from pds_operator import names

Object = dict[str, Any]

ROLES = names.ROLES
WHOLE = (
    "model",
    "image",
    "imagePullPolicy",
    "imagePullSecrets",
    "serviceAccountName",
    "engine",
    "compileCache",
    "restartedAt",
)
OF_ROLES = ("parallelism", "ranksPerPod", "resources", "engine", "podTemplate")
OF_SCHEDULING = ("schedulerName", "priorityClassName", "gang", "groupTopologyKey")
OF_ROLLOUT = ("drainSeconds",)
"""It is the pods' grace period."""
AHEAD = ("targets", "nodeSelector")
"""Of compileCache.warmup: they make Jobs, and change no pod."""
LENGTH = 10


def affecting(raw: Object) -> Object:
    """The part of an object's `spec` that pods are made from, unset fields left out.

    It is taken from what the user wrote, not from a model: a default that comes with a new CRD or
    a new operator is in neither.
    """
    chosen: Object = {key: raw.get(key) for key in WHOLE}
    chosen["compileCache"] = _without_ahead(raw.get("compileCache"))
    for role in ROLES:
        if isinstance(raw.get(role), dict):
            # The role counts even when it says nothing: an added role is a new revision.
            chosen[role] = {"role": role, **{key: raw[role].get(key) for key in OF_ROLES}}
    chosen["scheduling"] = _only(raw.get("scheduling"), OF_SCHEDULING)
    chosen["rollout"] = _only(raw.get("rollout"), OF_ROLLOUT)
    pruned = _pruned(chosen)
    return pruned if isinstance(pruned, dict) else {}


def digest(raw: Object, key: str = "") -> str:
    """Ten characters that name the revision of this `spec` whose pods mount the control key `key`.

    The first key, "", counts for nothing: that pods mount it is how revisions were made before
    there were others.
    """
    text = json.dumps(affecting(raw), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    text += f"\nkey {key}" if key else ""
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def restored(raw: Object, stored: Object) -> Object:
    """`raw` with what pods are made from restored to `stored` (`affecting` of an older spec).

    Replicas, limits and routers stay as `raw` has them.
    """
    result = {key: value for key, value in raw.items() if key not in WHOLE}
    result |= {key: stored[key] for key in WHOLE if key in stored}
    ahead, cache = _only((raw.get("compileCache") or {}).get("warmup"), AHEAD), _fillable(stored)
    if ahead and cache:
        result["compileCache"] = {**cache, "warmup": {**cache.get("warmup", {}), **ahead}}
    for role in ROLES:
        if role in stored:
            result[role] = _restored(raw.get(role), stored[role], OF_ROLES)
        else:
            result.pop(role, None)
    for name, keys in (("scheduling", OF_SCHEDULING), ("rollout", OF_ROLLOUT)):
        part = _restored(raw.get(name), stored.get(name) or {}, keys)
        if part:
            result[name] = part
        else:
            result.pop(name, None)
    return result


def _without_ahead(cache: Any) -> Any:
    if not isinstance(cache, dict) or not isinstance(cache.get("warmup"), dict):
        return cache
    kept = {key: value for key, value in cache["warmup"].items() if key not in AHEAD}
    return {**cache, "warmup": kept}


def _fillable(stored: Object) -> Object:
    """A compile cache on a volume that a Job may fill; else nothing."""
    cache: Object = stored.get("compileCache") or {}
    shared = "ephemeral" not in cache.get("volume", {"ephemeral": {}})
    return cache if shared and cache.get("warmup", {}).get("enabled") is not False else {}


def _restored(part: Any, stored: Object, keys: tuple[str, ...]) -> Object:
    kept = {key: value for key, value in (part or {}).items() if key not in keys}
    return kept | {key: stored[key] for key in keys if key in stored}


def _only(part: Any, keys: tuple[str, ...]) -> Object:
    given = part if isinstance(part, dict) else {}
    return {key: given[key] for key in keys if given.get(key) is not None}


def _pruned(value: Any) -> Any:
    """Without None and without maps and lists that are empty, but for a chosen `{}`.

    `ephemeral: {}` says something by being there.
    """
    if isinstance(value, dict):
        kept = {key: _pruned(item) for key, item in value.items() if item is not None}
        return {
            key: item
            for key, item in kept.items()
            if item not in ({}, []) or key in ("ephemeral", "emptyDir")
        }
    if isinstance(value, list):
        return [_pruned(item) for item in value]
    return value
