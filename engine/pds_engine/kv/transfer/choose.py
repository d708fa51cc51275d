"""Which backend a pair uses, from what both offer. Pure.

The order is measured (benchmarks/handover.py): where there is no fabric that NIXL can use, bytes
go over the kernel's TCP either way, and a socket that reads straight into the pages is faster than
UCX's emulation of one-sided writes on top of it. Shared memory is asked for by tests alone.
"""

from collections.abc import Mapping

from pds_engine.kv.transfer.base import Offer
from pds_engine.kv.transfer.frames import BackendName


def choose(ours: Mapping[str, Offer], theirs: Mapping[str, Offer]) -> BackendName | None:
    """The backend for writes from us to them, or None: nothing is offered by both."""
    order: tuple[BackendName, ...] = (
        ("shm", "nixl", "tcp")
        if _direct(ours, theirs)
        else (
            "shm",
            "tcp",
            "nixl",
        )
    )
    for name in order:
        if name in ours and name in theirs and _reaches(name, ours[name], theirs[name]):
            return name
    return None


def _direct(ours: Mapping[str, Offer], theirs: Mapping[str, Offer]) -> bool:
    """Whether NIXL has a way that is not the host's TCP: a common fabric, or one address space."""
    mine, other = ours.get("nixl"), theirs.get("nixl")
    if mine is None or other is None:
        return False
    return bool(set(mine.fabric) & set(other.fabric)) or _same_domain(mine, other)


def _reaches(name: BackendName, mine: Offer, other: Offer) -> bool:
    return name != "shm" or _same_domain(mine, other)


def _same_domain(mine: Offer, other: Offer) -> bool:
    return bool(mine.domain) and mine.domain == other.domain
