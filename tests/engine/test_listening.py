"""Real sockets: a port in use differs from an address or a port that cannot be ours."""

import socket
from collections.abc import Iterator

import pytest
import zmq
from pds_engine.errors import ConfigError, PortTaken
from pds_engine.keys import Keys
from pds_engine.listening import bind, listener
from pds_engine.ports import HTTP
from pds_engine.wire import Hub


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("listen", [bind, listener])
def test_a_port_in_use_is_named_with_its_use_and_its_setting(listen, taken: int) -> None:
    with pytest.raises(PortTaken) as raised:
        listen("127.0.0.1", taken, HTTP)
    assert str(raised.value) == (
        f"cannot listen on 127.0.0.1:{taken}, the port of HTTP: Address already in use "
        "(end what has the port, or give http.port another one; 0 takes any)"
    )


@pytest.mark.parametrize(
    ("host", "says"),
    [
        ("192.0.2.1", "Cannot assign requested address"),
        ("no.such.host.invalid", "Name or service not known|No address|Temporary failure"),
    ],
)
def test_an_address_that_is_not_ours_is_an_error_of_the_configuration(host: str, says: str) -> None:
    with pytest.raises(ConfigError, match=f"^http.port: cannot listen on {host}:0.*({says})"):
        bind(host, 0, HTTP)


def test_every_address_of_a_name_is_bound_and_none_left_when_one_is_taken(taken: int) -> None:
    everywhere = bind("localhost", 0, HTTP)
    assert {each.getsockname()[0] for each in everywhere} <= {"127.0.0.1", "::1"}
    for each in everywhere:
        each.close()
    with pytest.raises(PortTaken):
        bind("localhost", taken, HTTP)


def test_a_port_bound_by_nobody_that_listens_yet_is_taken_when_it_is_listened_on() -> None:
    """SO_REUSEADDR lets two bind it: the second to listen learns of it."""
    (first,) = bind("127.0.0.1", 0, HTTP)
    (second,) = bind("127.0.0.1", first.getsockname()[1], HTTP)
    with first, second:
        first.listen()
        with pytest.raises(OSError, match="in use"):
            second.listen()


def test_the_schedulers_port_in_use_is_named(taken: int) -> None:
    context = zmq.Context()
    with pytest.raises(PortTaken, match=f"cannot listen on 127.0.0.1:{taken}, the port of control"):
        Hub(context, f"tcp://127.0.0.1:{taken}", Keys.make())
    context.term()
