"""Which backends there are. Nothing else compares their names or asks for their classes."""

import logging
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from pds_engine.config import KvBackend
from pds_engine.errors import ConfigError, TransferFailed
from pds_engine.kv.pool import KvPool
from pds_engine.kv.transfer.base import Backend
from pds_engine.kv.transfer.nixl import NixlBackend
from pds_engine.kv.transfer.shm import ShmBackend
from pds_engine.kv.transfer.tcp import TcpBackend
from pds_engine.ports import KvAddress

_log = logging.getLogger(__name__)

_ALL: tuple[type[Backend], ...] = (NixlBackend, TcpBackend, ShmBackend)
BACKENDS: Final[Mapping[KvBackend, type[Backend]]] = MappingProxyType({b.name: b for b in _ALL})
"""All that `kv.backends` may ask for, by name."""


def shared_pool(names: Iterable[KvBackend]) -> bool:
    """Whether a pool that these backends are to read must lie in shared memory."""
    return any(BACKENDS[name].shares_pool for name in names)


def start_backends(
    names: Iterable[KvBackend], pool: KvPool, at: KvAddress
) -> dict[KvBackend, Backend]:
    """Those of `names` that work here; the others are left out with a line in the log.

    Raises:
        PortTaken: another process has the port of one that listens by itself.
        ConfigError: none does.
    """
    names, found = tuple(names), dict[KvBackend, Backend]()
    for name in names:
        try:
            found[name] = BACKENDS[name].start(pool, at)
        except TransferFailed as error:
            _log.warning("kv backend %s is not offered: %s", name, error)
    if not found:
        raise ConfigError(
            f"kv.backends: none of {', '.join(names) or 'nothing'} works here",
            hint="tcp works wherever the pages are in host memory",
        )
    return found
