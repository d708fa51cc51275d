"""Which backend a pair uses, from what both offer. Pure."""

from collections.abc import Mapping

from pds_engine.config import KvBackend
from pds_engine.kv.transfer.base import Offer
from pds_engine.kv.transfer.registry import BACKENDS


def choose(ours: Mapping[str, Offer], theirs: Mapping[str, Offer]) -> KvBackend | None:
    """The backend for writes from us to them, or None: nothing is offered by both.

    Of those that reach, the one with the best way; of equal ones the first in the registry.
    """
    ways = {
        name: way
        for name, backend in BACKENDS.items()
        if name in ours
        and name in theirs
        and (way := backend.way(ours[name], theirs[name])) is not None
    }
    if not ways:
        return None
    best: KvBackend = max(ways, key=ways.__getitem__)
    return best
