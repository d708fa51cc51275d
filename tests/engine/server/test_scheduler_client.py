import asyncio
from dataclasses import dataclass

import pytest
from msgspec.structs import replace
from pds_engine.errors import GroupError, Overloaded, ProtocolError, Unavailable
from pds_engine.messages import Cancel, PeerGone, Sampling, Submit, Token
from pds_engine.server.inbox import ClientSlow, Inbox
from pds_engine.server.scheduler_client import SchedulerClient


def submit(name: str) -> Submit:
    return Submit(request_id=name, prompt_ids=(1,), sampling=Sampling(max_tokens=9), seed=0)


@dataclass
class Loss:
    count: int = 0

    def __call__(self) -> None:
        self.count += 1


async def test_a_token_finds_its_request(served, silent, taken):
    async with served(silent) as s:
        one, two = (
            s.scheduler_client.open([submit("a")]),
            s.scheduler_client.open([submit("b#0"), submit("b#1")]),
        )
        tokens = [Token(request_id=name, index=0, token=5) for name in ("b#1", "a", "stranger")]
        for token in tokens:
            s.scheduler.inbound.put_nowait(token)
        assert await taken(two) == [(1, tokens[0])]
        assert await taken(one) == [(0, tokens[1])]


async def test_the_bound_of_open_choices(served, silent):
    async with served(silent, capacity=2) as s:
        s.scheduler_client.open([submit("a"), submit("b")])
        with pytest.raises(Overloaded):
            s.scheduler_client.open([submit("c")])
        s.scheduler_client.close("a", cancel=True)
        s.scheduler_client.open([submit("c")])
        assert await s.scheduler.until(Cancel) == [Cancel(request_id="a")]


async def test_one_name_is_answered_once(served, silent):
    async with served(silent) as s:
        s.scheduler_client.open([submit("a")])
        with pytest.raises(Unavailable, match="already"):
            s.scheduler_client.open([submit("a")])


async def test_a_client_that_does_not_read(served):
    inbox = Inbox(bound=2)
    for index in range(3):
        inbox.put(0, Token(request_id="a", index=index, token=1))
    with pytest.raises(ClientSlow):
        inbox.take()
    with pytest.raises(ClientSlow):
        inbox.take()


async def test_a_lost_scheduler_fails_everything(served, silent):
    async with served(silent) as s:
        s.scheduler_client.on_loss = loss = Loss()
        waiting = asyncio.create_task(s.client.post("/v1/completions", json={"prompt": "a"}))
        await s.scheduler.until(Submit)
        s.scheduler.died.set()
        assert (await waiting).status_code == 503
        assert (await s.client.get("/healthz")).status_code == 503
        assert (await s.client.get("/readyz")).status_code == 503
        again = await s.client.post("/v1/completions", json={"prompt": "a"})
    assert again.status_code == 503
    # The group may have failed of a request that it had; later ones were not even begun.
    assert (await waiting).json()["error"]["code"] == "group_failed"
    assert again.json()["error"]["code"] == "unavailable"
    with pytest.raises(Unavailable, match="takes nothing more"):  # not the words of "has failed"
        s.scheduler_client.open([submit("late")])
    assert isinstance(s.scheduler_client.error, GroupError)
    assert loss.count == 1


async def test_a_message_for_another_is_a_loss(served, silent, taken):
    async with served(silent) as s:
        s.scheduler_client.on_loss = loss = Loss()
        inbox = s.scheduler_client.open([submit("a")])
        s.scheduler.inbound.put_nowait(PeerGone(incarnation="x"))
        with pytest.raises(Unavailable):
            await taken(inbox)
    assert isinstance(s.scheduler_client.error, ProtocolError)
    assert loss.count == 1


async def test_a_scheduler_of_another_incarnation_is_refused(served, silent):
    async with served(silent) as s:
        stranger = SchedulerClient(
            [lambda: s.scheduler], group="local", incarnation="other", capacity=1
        )
        joining = asyncio.create_task(stranger.start())
        s.scheduler_client._tasks[0].cancel()  # its receiver would take the Welcome
        with pytest.raises(ProtocolError, match="incarnation"):
            await joining


async def test_drained_waits_for_transfers_too(served, silent):
    async with served(silent) as s:
        idle = replace(s.scheduler_client.state, draining=True)
        busy = replace(idle, transfers_in_flight=1)
        s.scheduler.inbound.put_nowait(busy)
        while s.scheduler_client.state != busy:  # noqa: ASYNC110  the fake reports at once
            await asyncio.sleep(0)
        assert not await s.scheduler_client.drained(0.05)
        waiting = asyncio.create_task(s.scheduler_client.drained(5))
        s.scheduler.inbound.put_nowait(idle)
        assert await waiting
