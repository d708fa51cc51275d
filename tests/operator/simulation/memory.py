"""Makes pure functions of the operator remember, for a thousand runs that ask them the same."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from pds_operator import diff, execute, keys, revision, spec
from pds_operator.build import engine, router, shared
from pds_operator.build.owner import Owner

PURE = (
    (spec, "parse"),
    (revision, "digest"),
    (shared, "objects"),
    (router, "objects"),
    (diff, "stamped"),
    (diff, "verdict"),
    (engine, "render"),
    (engine, "config_map"),
    (engine, "controller_revision"),
    (engine, "pod"),
)
VALUES = frozenset({str, int, bool, Owner})
"""Types of arguments that are compared by value; all others are known by identity."""


def _remembering(function: Callable[..., Any], most: int = 10_000) -> Callable[..., Any]:
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
            if len(known) >= most:
                known.clear()
            known[place] = found = (args, function(*args))
        result = found[1]
        return [*result] if type(result) is list else result

    return remembered


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Within it the operator's pure functions remember, keys are not random, and logs are off."""
    same = keys.control_keys()
    with contextlib.ExitStack() as stack:
        for module, name in PURE:
            function = getattr(module, name)
            stack.enter_context(mock.patch.object(module, name, _remembering(function)))
        stack.enter_context(mock.patch.object(execute, "control_keys", return_value=same))
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)
