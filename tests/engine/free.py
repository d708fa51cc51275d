"""Ports for the tests' own listeners, none of them given twice.

The kernel gives outgoing connections ports of its ephemeral range, which begins at 32768: one that
was found free there may be taken a second later. Workers of pytest-xdist have a share each.
"""

import os
import socket
from contextlib import suppress
from itertools import cycle

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_SHARE = 1_000
_FIRST = 12_000 + _WORKER % 18 * _SHARE
_ports = cycle(range(_FIRST, _FIRST + _SHARE))


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    for port in _ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("the cycle of ports has ended")


def free_pair() -> int:
    """The first of two such ports that are neighbours."""
    first, second = free_port(), free_port()
    while second != first + 1:
        first, second = second, free_port()
    return first
