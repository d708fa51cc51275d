"""Makes pure functions of the operator remember, for a thousand runs that ask them the same."""

import contextlib
import gc
import hashlib
import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from pds_operator import revision, schema
from pds_operator.decide import diff, fleet, objects, ownership
from pds_operator.render import engine, router, shared, warmup
from pds_operator.render.owner import Owner
from pds_operator.run import cluster, vault

MOST = 10_000
"""Results that a function remembers."""
VALUES = frozenset({str, int, bool, Owner})
"""Types of arguments that are compared by value; all others are known by identity."""


def _remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, which is pure. Arguments are held, so that no identity stands for two objects.

    What it returns is shared: nobody changes objects of a simulated cluster in place.
    """
    known: dict[tuple[Any, ...], tuple[tuple[Any, ...], Any]] = {}

    def key(arg: Any) -> Any:
        if type(arg) is dict and all(type(value) is int for value in arg.values()):
            return tuple(arg.items())
        return id(arg)

    def remembered(*args: Any) -> Any:
        place = tuple([arg if type(arg) in VALUES else key(arg) for arg in args])
        found = known.get(place)
        if found is None:
            if len(known) >= MOST:
                known.clear()
            known[place] = found = (args, function(*args))
        result = found[1]
        return [*result] if type(result) is list else result

    return remembered


def _digesting(function: Callable[..., str]) -> Callable[..., str]:
    """`revision.digest`, which is asked for most: by the identity of the spec, and the key."""
    known: dict[tuple[int, str], tuple[Any, str]] = {}

    def digest(raw: Any, key: str = "") -> str:
        found = known.get((id(raw), key))
        if found is None:
            known[id(raw), key] = found = (raw, function(raw, key))
        return found[1]

    return digest


def _rendering(function: Callable[..., Any]) -> Callable[..., Any]:
    """`engine.render`: one revision is one object, however many specs have it."""
    known: dict[tuple[str, int], tuple[Any, Any]] = {}

    def render(raw: Any, spec: Any, owner: Owner, settings: Any, key: str) -> Any:
        place = (revision.digest(raw, key), id(settings))
        found = known.get(place)
        if found is None:
            known[place] = found = (settings, function(raw, spec, owner, settings, key))
        return found[1]

    return render


def _ensuring(function: Callable[..., None]) -> Callable[..., None]:
    """`objects.ensure`: what was left alone once is left alone again."""
    known: dict[tuple[int, int], tuple[Any, Any]] = {}

    def ensure(round_: Any, obj: Any) -> None:
        live = round_.observed.objects.get((obj["kind"], obj["metadata"]["name"]))
        place = id(obj), id(live)
        if place in known:
            return
        before = len(round_.actions), len(round_.problems)
        function(round_, obj)
        if before == (len(round_.actions), len(round_.problems)):
            if len(known) >= MOST:
                known.clear()
            known[place] = obj, live

    return ensure


def _owning(function: Callable[..., Any]) -> Callable[..., Any]:
    """`ownership.whose`, which each round asks twice of every object."""
    known: dict[tuple[int, str], tuple[Any, Any]] = {}

    def whose(obj: Any, owner: Owner) -> Any:
        place = id(obj), owner.uid
        found = known.get(place)
        if found is None:
            if len(known) >= MOST:
                known.clear()
            known[place] = found = (obj, function(obj, owner))
        return found[1]

    return whose


def _grouping(function: Callable[..., Any]) -> Callable[..., Any]:
    """`fleet.Group`, by the identity of its pods: what it has worked out of them it keeps."""
    known: dict[tuple[Any, ...], Any] = {}

    def group(role: str, index: int, attempt: int, revision: str, size: int, *pods: Any) -> Any:
        place = (size, *map(id, pods[0]), 0, *map(id, pods[1]))
        found = known.get(place)
        if found is None:
            if len(known) >= MOST:
                known.clear()
            known[place] = found = function(role, index, attempt, revision, size, *pods)
        return found

    return group


class NumberedKeys:
    """In place of `keys.control_keys`: each differs from those before, in every run the same."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> dict[str, str]:
        self.made += 1
        return {"hmac.key": hashlib.sha256(b"%d" % self.made).hexdigest()}


KEYS = NumberedKeys()

PURE: dict[tuple[Any, str], Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    (schema, "parse"): _remembering,
    (revision, "digest"): _digesting,
    (shared, "objects"): _remembering,
    (router, "objects"): _remembering,
    (diff, "stamped"): _remembering,
    (objects, "ensure"): _ensuring,
    (fleet, "Group"): _grouping,
    (cluster, "pod_facts"): _remembering,
    (ownership, "revision_facts"): _remembering,
    (ownership, "whose"): _owning,
    (warmup, "jobs"): _remembering,
    (engine, "render"): _rendering,
    (engine, "config_map"): _remembering,
    (engine, "controller_revision"): _remembering,
    (engine, "pod"): _remembering,
}


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Within it the operator's pure functions remember, keys are not random, and logs are off.

    What is remembered is garbage to nobody, so that the search for garbage is postponed, too.
    """
    threshold = gc.get_threshold()
    gc.set_threshold(200_000, 20, 20)
    with contextlib.ExitStack() as stack:
        for (module, name), remember in PURE.items():
            wrapped = remember(getattr(module, name))
            stack.enter_context(mock.patch.object(module, name, wrapped))
        stack.enter_context(mock.patch.object(vault, "control_keys", KEYS))
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
            gc.set_threshold(*threshold)
