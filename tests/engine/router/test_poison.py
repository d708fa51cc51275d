"""A request that groups die of: it is sent on so often and no more, and the others go on."""

import asyncio
import json

import pytest

HELLO = b'data: {"t":1}\n\ndata: {"t":2}\n\ndata: [DONE]\n\n'
C = "/v1/chat/completions"


class Groups:
    """Engines that die when they meet a poison; the dead are counted."""

    def __init__(self, how, good):
        self.how = how
        self.good = good
        self.members = {}
        self.dead = []

    def join(self, fake):
        self.members[fake.port] = fake
        fake.script = self.script(fake)
        return fake

    def script(self, fake):
        async def serve(seen, stream):
            if b"poison" not in seen.body:
                await self.good(seen, stream)
            else:
                await self.die(fake, seen, stream)

        return serve

    async def die(self, fake, seen, stream):
        self.dead.append(fake)
        if self.how == "hangs":
            fake.silent = True
            await stream.gone.wait()
            return
        code = {"says so": "group_failed", "said so before": "unavailable"}.get(self.how)
        if code is not None:
            error = {"message": "the group has failed: its scheduler is lost", "code": code}
            await stream.json(503, {"error": error}, retry_after="1")
        fake.crashed = asyncio.create_task(fake.stop())
        if code is None:
            stream.drop()


def count(running, phase):
    name = f'pds_router_group_deaths_total{{phase="{phase}"}}'
    text = running.router.metrics.text().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


async def ask(running, **body):
    async with running.http.post(C, json={"messages": [], **body}) as response:
        return response.status, await response.read(), response.headers["x-request-id"]


async def say(seen, stream):
    """A well-behaved engine (conftest's): its role is in the headers."""
    role = seen.headers.get("x-pds-role", "unified")
    await stream.head()
    if role in ("prefill", "unified"):
        await stream.put(b': pds 1 7\ndata: {"t":1}\n\n')
    if role in ("decode", "unified"):
        await stream.put(b': pds 1 8\ndata: {"t":2}\n\ndata: [DONE]\n\n')
    stream.end()


@pytest.mark.parametrize("how", ["crashes", "hangs", "says so", "said so before"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("warm", [False, True])
async def test_as_many_groups_die_as_attempts_are_allowed(
    engine, router, how, stream, warm, caplog
):
    groups = Groups(how, say)
    fleet = [groups.join(await engine("unified")) for _ in range(6)]
    health = {"lost_after": 0.4, "timeout": 0.1, "misses": 2}
    running = await router(*fleet, attempts=3, health=health)
    if warm:  # on connections that were open before
        assert [await running.stream() for _ in range(12)] == [HELLO] * 12
    status, body, request_id = await ask(running, stream=stream, user="poison")
    assert status == 503
    assert json.loads(body)["error"]["code"] in ("unavailable", "group_failed")
    assert len(groups.dead) == len({fake.port for fake in groups.dead}) == 3
    assert count(running, "opening") == 3
    (error,) = [r for r in caplog.records if "given up" in r.message]
    assert error.request_id == request_id
    assert [await running.stream() for _ in range(6)] == [HELLO] * 6
    assert len(groups.dead) == 3


@pytest.mark.parametrize("victim", ["prefill", "decode"])
@pytest.mark.parametrize("how", ["crashes", "says so", "said so before"])
async def test_whichever_side_of_a_pair_dies(engine, router, victim, how):
    groups = Groups(how, say)
    other = "decode" if victim == "prefill" else "prefill"

    async def waits(seen, stream):
        if b"poison" in seen.body:
            await stream.gone.wait()
        else:
            await say(seen, stream)

    mortal = [groups.join(await engine(victim)) for _ in range(5)]
    running = await router(*mortal, await engine(other, script=waits), attempts=2)
    status, _, _ = await ask(running, stream=True, user="poison")
    assert status == 503
    assert len(groups.dead) == 2
    assert [await running.stream() for _ in range(4)] == [HELLO] * 4


async def test_a_request_that_kills_both_sides_of_its_pairs(engine, router):
    """Groups that it finds dead give it no more attempts than it may have."""
    groups = Groups("crashes", say)
    prefill = [groups.join(await engine("prefill")) for _ in range(6)]
    decode = [groups.join(await engine("decode")) for _ in range(6)]
    running = await router(*prefill, *decode, attempts=2)
    status, _, _ = await ask(running, stream=True, user="poison")
    assert status == 503
    for fleet in (prefill, decode):
        assert len({fake.port for fake in groups.dead} & {fake.port for fake in fleet}) <= 2
    assert [await running.stream() for _ in range(4)] == [HELLO] * 4


async def test_a_prefill_group_that_waited_for_an_offer_in_vain_was_an_attempt(engine, router):
    """A decode group fell silent with the request, as a prefill group of the release before
    reports it."""

    async def unoffered(seen, stream):
        error = {"message": "no decode group has offered pages for this request"}
        await stream.json(503, {"error": {**error, "code": "unavailable"}})

    async def silent(seen, stream):
        await stream.gone.wait()

    prefill = [await engine("prefill", script=unoffered) for _ in range(5)]
    running = await router(*prefill, await engine("decode", script=silent), attempts=2)
    status, _, _ = await ask(running, stream=True)
    assert status == 503
    assert sum(len(each.calls) for each in prefill) == 2


async def test_a_body_that_no_group_could_read_was_sent_to_so_many_and_no_more(engine, router):
    """Their readers may end because of it; the groups themselves are well."""

    async def unread(seen, stream):
        if b"poison" not in seen.body:
            return await say(seen, stream)
        error = {"message": "the process that reads large bodies ended", "code": "body_not_read"}
        return await stream.json(503, {"error": error}, retry_after="1")

    fleet = [await engine("unified", script=unread) for _ in range(6)]
    running = await router(*fleet, attempts=3)
    for _ in range(3):
        status, _, _ = await ask(running, user="poison")
        assert status == 503
    assert sum(len(each.calls) for each in fleet) == 3 * 3
    assert [backend.failures for backend in running.router.fleet] == [0] * 6
    assert [await running.stream() for _ in range(6)] == [HELLO] * 6


class Resumed(Groups):
    """Groups that die in the middle of a poison's stream, and of taking it over."""

    async def die(self, fake, seen, stream):
        if b"pds_resume" not in seen.body:
            await stream.head()
            await stream.put(b': pds 1 7\ndata: {"t":1}\n\n')
            await asyncio.sleep(0.002)
        elif self.how not in ("crashes", "hangs"):
            return await super().die(fake, seen, stream)
        self.dead.append(fake)
        if self.how == "hangs":
            fake.silent = True
            await stream.gone.wait()
            return None
        fake.crashed = asyncio.create_task(fake.stop())
        stream.drop()
        return None


@pytest.mark.parametrize("how", ["crashes", "hangs", "says so", "said so before"])
@pytest.mark.parametrize("migrations", [0, 1, 2])
async def test_a_stream_that_kills_who_takes_it_over(engine, router, how, migrations, caplog):
    groups = Resumed(how, say)
    fleet = [groups.join(await engine("unified")) for _ in range(6)]
    health = {"lost_after": 0.4, "timeout": 0.1, "misses": 2}
    running = await router(*fleet, migrations=migrations, resume_seconds=20, health=health)
    async with asyncio.timeout(10):
        status, body, request_id = await ask(running, stream=True, user="poison")
    assert status == 200 and body.startswith(b'data: {"t":1}\n\n')
    assert f"elsewhere {migrations} times already".encode() in body
    assert len(groups.dead) == len({fake.port for fake in groups.dead}) == migrations + 1
    assert (count(running, "streaming"), count(running, "resuming")) == (1, migrations)
    (error,) = [r for r in caplog.records if "given up" in r.message]
    assert error.request_id == request_id
    assert [await running.stream() for _ in range(6)] == [HELLO] * 6


async def test_the_decode_side_may_be_the_first_to_tell_of_a_dead_prefill_side(engine, router):
    """A group that dies while it takes a stream over counts, whoever reports it."""
    dead = []

    async def decode(seen, stream):
        if b"pds_resume" in seen.body:
            await asyncio.sleep(0.01)
            dead.append(seen)
            error = {"message": "the prefill side is lost", "code": "transfer_failed"}
            await stream.json(503, {"error": error})
            return
        await stream.head()
        await stream.put(b': pds 2 8\ndata: {"t":2}\n\n')
        await asyncio.sleep(0.002)
        stream.drop()

    async def prefill(seen, stream):
        if b"pds_resume" in seen.body:
            await stream.gone.wait()
        else:
            await say(seen, stream)

    fleet = [await engine("prefill", script=prefill) for _ in range(6)]
    running = await router(*fleet, await engine("decode", script=decode), migrations=2)
    async with asyncio.timeout(10):
        _, body, _ = await ask(running, stream=True)
    assert b"elsewhere 2 times already" in body
    assert len(dead) == 2


async def test_a_group_that_cannot_be_reached_is_waited_for(engine, router):
    """However long a restart takes: nothing is sent there, so nothing counts."""
    alone = await engine("unified")
    tries = []

    async def once(seen, stream):
        tries.append(seen)
        if len(tries) > 1:
            await stream.head()
            await stream.put(b': pds 2 8\ndata: {"t":2}\n\ndata: [DONE]\n\n')
            stream.end()
            return
        await stream.head()
        await stream.put(b': pds 1 7\ndata: {"t":1}\n\n')
        await asyncio.sleep(0.002)
        alone.crashed = asyncio.create_task(alone.stop())
        stream.drop()

    alone.script = once
    running = await router(alone, migrations=1, health={"misses": 99, "open_after": 99})
    asking = asyncio.create_task(running.stream())
    (backend,) = running.router.fleet
    async with asyncio.timeout(5):
        while backend.missed < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await alone.start()
    assert await asking == HELLO
    assert count(running, "resuming") == 0
