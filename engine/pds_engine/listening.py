"""Sockets that listen, and the errors when a port cannot be bound.

A port in use says nothing about the configuration: its holder may be gone in a second. So the
process ends with a status that is tried again (PortTaken). An address that is not this machine's,
or a port that we may not bind, is a ConfigError.
"""

import errno
import os
import socket

from pds_engine.errors import ConfigError, PdsError, PortTaken
from pds_engine.ports import Use

_FOREIGN = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""One of a name's several addresses may fail so: it is not an address of this machine."""


def bind(host: str, port: int, use: Use) -> list[socket.socket]:
    """A bound socket for each address of `host`; the caller makes them listen.

    Raises:
        PortTaken: another process has the port.
        ConfigError: the address or the port cannot be used.
    """
    found: list[socket.socket] = []
    failed: OSError | None = None
    try:
        for family, kind, protocol, _, address in _addresses(host, port):
            listener = socket.socket(family, kind, protocol)
            try:
                _bind_one(listener, family, address)
            except OSError as error:
                listener.close()
                if error.errno not in _FOREIGN:
                    raise
                failed = error
            else:
                found.append(listener)
        if failed is not None and not found:
            raise failed
    except OSError as error:
        for listener in found:
            listener.close()
        raise refusal(error, host, port, use) from error
    return found


def listener(host: str, port: int, use: Use) -> socket.socket:
    """A socket that listens on the one address `host`.

    Raises:
        PortTaken, ConfigError: as `bind` does.
    """
    (first, *others) = bind(host, port, use)
    for other in others:
        other.close()
    try:
        first.listen(64)
    except OSError as error:
        first.close()
        raise refusal(error, host, port, use) from error
    return first


def some_free(host: str, ports: range, use: Use) -> None:
    """Check that a listener that does not set SO_REUSEADDR will find one of `ports` free.

    Raises:
        PortTaken, ConfigError: as `bind` does, when none is.
    """
    failed = OSError(errno.EADDRINUSE, "")
    for port in ports:
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.bind((host, port))
            return
        except OSError as error:
            failed = error
    raise refusal(failed, host, f"{ports[0]}-{ports[-1]}", use) from failed


def refusal(error: OSError, host: str, port: int | str, use: Use) -> PdsError:
    """What to raise when listening on `port` failed with `error`."""
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
    message = f"cannot listen on {host}:{port}, the port of {use.purpose}: {reason}"
    if error.errno == errno.EADDRINUSE:
        hint = f"end what has the port, or give {use.key} another one; 0 takes any"
        return PortTaken(message, hint=hint)
    return ConfigError(f"{use.key}: {message}")


def _addresses(host: str, port: int) -> list[tuple[int, int, int, str, tuple[object, ...]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys(found))


def _bind_one(listener: socket.socket, family: int, address: tuple[object, ...]) -> None:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    listener.bind(address)
