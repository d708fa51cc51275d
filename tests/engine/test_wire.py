"""Envelopes between real sockets: a message that cannot be made takes no number."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import zmq
from pds_engine.keys import Keys
from pds_engine.messages import Cancel, Drain, Message, Sampling, Submit
from pds_engine.wire import AsyncLink, Authority, Hub, Link, Unsendable


@dataclass
class Ends:
    hub: Hub
    link: Link


@pytest.fixture
def ends() -> Iterator[Ends]:
    context, keys = zmq.Context(), Keys.make()
    authority = Authority(context, keys)
    hub = Hub(context, "tcp://127.0.0.1:*", keys)
    link = Link(context, f"tcp://127.0.0.1:{hub.port}", keys)
    yield Ends(hub, link)
    link.close()
    hub.close()
    authority.close()
    context.term()


def came(hub: Hub) -> tuple[bytes, Message]:
    """The next message, within 5 s."""
    got = None
    while got is None:
        if not hub.socket.poll(5000):
            pytest.fail("nothing came")
        got = hub.receive()
    return got


def submit(**sampling: int) -> Submit:
    return Submit(
        request_id="r", prompt_ids=(1,), sampling=Sampling(max_tokens=1, **sampling), seed=0
    )


BAD = [
    submit(top_k=2**64),
    submit(top_k=10**400),
    submit(choice=-(2**63) - 1),
    Cancel(request_id="\ud800"),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: type(bad).__name__)
def test_what_a_link_cannot_send_takes_no_number(ends: Ends, bad: Message) -> None:
    with pytest.raises(Unsendable, match=type(bad).__name__):
        ends.link.send(bad)
    ends.link.send(Cancel(request_id="a"))
    assert came(ends.hub)[1] == Cancel(request_id="a")


def test_what_a_hub_cannot_send_takes_no_number_and_takes_nothing_along(ends: Ends) -> None:
    ends.link.send(Cancel(request_id="a"))
    who, _ = came(ends.hub)
    with pytest.raises(Unsendable):
        ends.hub.send(who, Drain(deadline_seconds=1.0), BAD[0])
    ends.hub.send(who, Drain(deadline_seconds=2.0))
    assert ends.link.receive(5) == Drain(deadline_seconds=2.0)


def test_several_messages_are_one_envelope(ends: Ends) -> None:
    ends.link.send(Cancel(request_id="a"))
    who, _ = came(ends.hub)
    several = [Drain(deadline_seconds=1.0), Cancel(request_id="b"), Drain(deadline_seconds=2.0)]
    ends.hub.send(who, *several)
    ends.hub.probe(who)
    ends.hub.send(who, Cancel(request_id="c"))
    got = [ends.link.receive(5) for _ in range(4)]
    assert got == [*several, Cancel(request_id="c")]
    assert ends.link.receive() is None


async def test_an_async_link_takes_what_came_while_it_sent() -> None:
    """Sending takes in what the socket's descriptor tells; what came must be found all the same."""
    context, keys = zmq.Context(), Keys.make()
    authority = Authority(context, keys)
    hub = Hub(context, "tcp://127.0.0.1:*", keys)
    link = AsyncLink(context, f"tcp://127.0.0.1:{hub.port}", keys)
    try:
        for turn in range(50):
            await link.send(Cancel(request_id=str(turn)))
            who, _ = await asyncio.to_thread(came, hub)
            hub.send(who, Drain(deadline_seconds=turn), Cancel(request_id="b"))
            await link.send(Cancel(request_id="x"))
            async with asyncio.timeout(5):
                assert await link.receive() == Drain(deadline_seconds=turn)
                assert await link.receive() == Cancel(request_id="b")
            await asyncio.to_thread(came, hub)
        lost = asyncio.create_task(link.lost())
        await asyncio.sleep(0)
        assert not lost.done()
        hub.close()
        async with asyncio.timeout(5):
            await lost
    finally:
        link.close()
        hub.close()
        authority.close()
        context.term()


async def test_what_an_async_link_cannot_send_takes_no_number() -> None:
    context, keys = zmq.Context(), Keys.make()
    plain = zmq.Context()
    authority = Authority(plain, keys)
    hub = Hub(plain, "tcp://127.0.0.1:*", keys)
    link = AsyncLink(context, f"tcp://127.0.0.1:{hub.port}", keys)
    try:
        for bad in BAD:
            with pytest.raises(Unsendable):
                await link.send(bad)
        await link.send(Cancel(request_id="a"))
        assert (await asyncio.to_thread(came, hub))[1] == Cancel(request_id="a")
    finally:
        link.close()
        hub.close()
        authority.close()
        plain.term()
        context.term()
