"""A stream that breaks off goes on in another pair: its client gets what it would have got."""

import asyncio
import json
import re

import pytest
from pds_engine.router import stream as streaming
from pds_engine.router.backends import GroupState
from pds_engine.router.call import read_call, resumed
from pds_engine.router.peek import peek

IDS = (11, 12, 13, 14, 15, 16)
"""What a model says, whoever computes it. Token 13 shows no text: its event is the next one's."""


def _events():
    """(tokens sent with it, raw, bare) of each event of the whole stream."""
    lines = [
        (1, b": pds 1 11", b'data: {"t":"a"}'),
        (2, b": pds 2 12", b'data: {"t":"b"}'),
        (4, b": pds 4 13,14", b'data: {"t":"cd"}'),
        (5, b": pds 5 15", b'data: {"t":"e"}'),
        (6, b": pds 6 16 end", b'data: {"t":"f"}'),
        (6, b": pds 6  end", b'data: {"finish":"length"}'),
        (6, b"", b'data: {"usage":6}'),
        (6, b"", b"data: [DONE]"),
    ]
    return [
        (count, (line + b"\n" if line else b"") + data + b"\n\n", data + b"\n\n")
        for count, line, data in lines
    ]


EVENTS = _events()
WHOLE = b"".join(bare for _, _, bare in EVENTS)


def body_of(seen):
    """The journalled events of a request's role, and where they begin."""
    ids = seen.json.get("pds_resume", {"output_ids": []})["output_ids"]
    assert tuple(ids) == IDS[: len(ids)]
    left = [(count, raw) for count, raw, _ in EVENTS if count > len(ids)]
    role = seen.headers["x-pds-role"]
    known = len(ids) + 1  # P's body: what its one token releases
    if role == "prefill":
        left = [(count, raw) for count, raw in left if count == known and b"finish" not in raw][:1]
    elif role == "decode":
        skipped = [raw for count, raw in left if count == known and b"finish" not in raw][:1]
        left = [(count, raw) for count, raw in left if raw not in skipped]
    return b"".join(raw for _, raw in left)


async def speaks(seen, stream):
    await stream.head()
    if body := body_of(seen):
        await stream.put(body)
    stream.end()


def breaks(at, how="drop", times=1):
    """Say `at` bytes of what is to be said, and then no more; the first `times` times."""
    left = [times]

    async def script(seen, stream):
        if not left[0]:
            return await speaks(seen, stream)
        left[0] -= 1
        body = body_of(seen)
        await stream.head()
        if body[:at]:
            await stream.put(body[:at])
        if how == "drop":
            await asyncio.sleep(0.002)
            stream.drop()
        else:
            error = {"error": {"message": "no more", "code": how}}
            await stream.put(b": pds failed 503 " + json.dumps(error).encode() + b"\n\n")
            stream.end()
        return None

    return script


DECODE = b"".join(raw for _, raw, _ in EVENTS[1:])
BORDERS = [match.end() for match in re.finditer(b"\n\n", DECODE)]


def migrations(running, reason):
    name = f'pds_router_migrations_total{{reason="{reason}"}}'
    text = running.router.metrics.text().decode()
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", b'{"pds_resume":{"output_ids":[5,6]}}'),
        (b" { \n} \n", b' {"pds_resume":{"output_ids":[5,6]}}'),
        (b'{"a": {} }', b'{"a": {},"pds_resume":{"output_ids":[5,6]}}'),
        (
            '{"prompt": "\u00e9}"}'.encode(),
            '{"prompt": "\u00e9}","pds_resume":{"output_ids":[5,6]}}'.encode(),
        ),
    ],
)
def test_the_body_stays_as_it_came_but_for_the_tokens(body, expected):
    call = read_call("/v1/completions", [], body, peek(body, "completion", "session"), now=0.0)
    again = resumed(call, [5, 6])
    assert again.body == expected
    assert json.loads(again.body)["pds_resume"] == {"output_ids": [5, 6]}
    assert (again.request_id, again.seed, again.created) == (call.request_id, call.seed, 0)
    assert again.prompt_tokens == call.prompt_tokens + 2
    assert resumed(call, []) is call


@pytest.mark.parametrize(
    ("first", "next_", "goes_on"),
    [
        (("m", "kv"), ("m", "other"), True),
        (("m", "kv"), ("n", "kv"), False),
        (("m", "kv"), ("", "kv"), False),
        (("", "kv"), ("m", "kv"), True),
        (("", "kv"), ("m", "other"), False),
    ],
)
def test_who_goes_on_with_whose_streams(first, next_, goes_on):
    one, other = (
        GroupState(role="decode", model_digest=digest, kv_fingerprint=kv)
        for digest, kv in (first, next_)
    )
    assert other.goes_on_with(one) == goes_on


async def test_wherever_a_decode_group_dies_the_client_gets_the_same(engine, router):
    p = await engine("prefill", script=speaks)
    dying, good = await engine("decode"), await engine("decode", script=speaks)
    running = await router(p, dying, good, health={"open_after": 100_000})
    cuts = range(len(DECODE) + 1)
    for at in cuts:
        dying.script = breaks(at)
        while dying.script is not speaks:  # until the policy has chosen it
            before = len(dying.calls)
            assert await running.stream() == WHOLE, at
            if len(dying.calls) > before:
                dying.script = speaks
    assert migrations(running, "lost") == len(cuts)
    assert all(b.in_flight == b.outstanding == 0 for b in running.router.fleet)


@pytest.mark.parametrize("at", [0, *BORDERS[:-1]])
@pytest.mark.parametrize("code", ["drained", "unavailable"])
async def test_an_engine_that_gives_up_is_taken_over(engine, router, at, code):
    p = await engine("prefill", script=speaks)
    dying = await engine("decode", script=breaks(at, code))
    running = await router(p, dying, await engine("decode", script=speaks))
    for _ in range(3):
        assert await running.stream() == WHOLE
    assert migrations(running, "drained" if code == "drained" else "failed") == 1


async def test_what_is_asked_of_the_next_pair(engine, router):
    p = await engine("prefill", script=speaks)
    one = await engine("decode", script=breaks(BORDERS[0]))
    two = await engine("decode", script=speaks)
    running = await router(p, one, two)
    body = b'{"stream": true, "x": [1.50] } \n'
    for _ in range(2):
        async with running.http.post("/v1/chat/completions", data=body) as response:
            assert await response.read() == WHOLE
    broken = one.calls[0]
    again = next(
        seen
        for seen in two.calls
        if seen.headers["x-pds-request-id"] == broken.headers["x-pds-request-id"]
    )
    assert again.body == b'{"stream": true, "x": [1.50],"pds_resume":{"output_ids":[11,12]}}'
    for name in ("x-pds-created", "x-pds-seed", "x-pds-request-id", "x-pds-journal"):
        assert again.headers[name] == broken.headers[name]
    assert again.headers["x-pds-attempt"] != broken.headers["x-pds-attempt"]
    (at_p,) = (seen for seen in p.calls if seen.body == again.body)
    assert at_p.headers["x-pds-role"] == "prefill"


async def test_a_prefill_group_that_dies_after_its_event_is_taken_over(engine, router):
    async def no_end(seen, stream):
        await stream.head()
        await stream.put(EVENTS[0][1])
        await asyncio.sleep(0.002)
        stream.drop()

    p, spare = await engine("prefill", script=no_end), await engine("prefill", script=speaks)
    running = await router(p, spare, await engine("decode", script=speaks))
    for _ in range(4):
        assert await running.stream() == WHOLE
    assert migrations(running, "lost") >= 1


async def test_a_unified_group_is_taken_over_by_a_pair_of_another_kv_format(engine, router):
    model = {"state": {"model_digest": "m"}}
    one = await engine("unified", kv="a", script=breaks(BORDERS[1]), **model)
    running = await router(one)
    p = await engine("prefill", kv="b", script=speaks, **model)
    d = await engine("decode", kv="b", script=speaks, **model)
    everyone = await router(one, p, d)
    for _ in range(3):
        assert await everyone.stream() == WHOLE
    assert migrations(everyone, "lost") == 1
    assert await running.stream() == WHOLE


async def test_groups_of_another_model_never_go_on(engine, router):
    one = await engine("unified", script=breaks(BORDERS[1], times=99), state={"model_digest": "m"})
    other = await engine("unified", script=speaks, state={"model_digest": "other"})
    running = await router(one, other, resume_seconds=0)
    bodies = [await running.stream() for _ in range(4)]
    broken = [body for body in bodies if body != WHOLE]
    assert broken
    assert all(b"no other pair took it over" in body for body in broken)
    assert all("pds_resume" not in seen.json for seen in other.calls)


async def test_a_stream_waits_for_its_only_decode_group_to_come_back(engine, router):
    p = await engine("prefill", script=speaks)
    only = await engine("decode", script=breaks(BORDERS[1]))
    running = await router(p, only)
    asking = asyncio.create_task(running.stream())
    async with asyncio.timeout(5):
        while not only.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await only.stop()
    await asyncio.sleep(0.3)
    assert not asking.done()
    only.state = {"incarnation": "next"}
    await only.start()
    assert await asking == WHOLE


async def test_a_stream_that_waits_is_not_silent(engine, router, monkeypatch):
    monkeypatch.setattr(streaming, "QUIET_SECONDS", 0.0)
    p = await engine("prefill", script=speaks)
    only = await engine("decode", script=breaks(BORDERS[1]))
    running = await router(p, only)
    body = await running.stream()
    assert body.count(streaming.WAITING) >= 1
    assert body.replace(streaming.WAITING, b"") == WHOLE


async def test_nobody_comes_back(engine, router):
    p = await engine("prefill", script=speaks)
    once = breaks(BORDERS[1])

    async def breaks_once(seen, stream):
        if len(only.calls) > 1:
            stream.drop()
        else:
            await once(seen, stream)

    only = await engine("decode", script=breaks_once)
    running = await router(p, only, resume_seconds=0.2)
    *bodies, last = (await running.stream()).split(b"\n\n")[:-1]
    assert b"\n\n".join(bodies) + b"\n\n" == b"".join(bare for _, _, bare in EVENTS[:3])
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert "decode group was lost" in error["message"]
    assert "no other pair took it over" in error["message"]


async def test_a_stream_moves_a_bounded_number_of_times(engine, router):
    async def one_event_more(seen, stream):
        await stream.head()
        body = body_of(seen)
        await stream.put(body[: body.find(b"\n\n") + 2])
        await asyncio.sleep(0.002)
        stream.drop()

    one, two = await engine("unified", script=one_event_more), await engine("unified")
    two.script = one_event_more
    running = await router(one, two, migrations=2, health={"open_after": 99})
    body = await running.stream()
    assert body.startswith(b"".join(bare for _, _, bare in EVENTS[:3]))
    assert b"elsewhere 2 times already" in body
    assert migrations(running, "lost") == 2


def failures(running):
    text = running.router.metrics.text().decode()
    return [line for line in text.splitlines() if line.startswith("pds_router_failed_attempts_")]


@pytest.mark.parametrize("pairs", [1, 2])
async def test_what_is_preempted_goes_on_however_often_and_is_nobody_s_fault(engine, router, pairs):
    """In the same group when there is no other; it counts neither as a move nor as a failure."""
    p = await engine("prefill", script=speaks)
    full = [await engine("decode", script=breaks(0, "preempted", times=20)) for _ in range(pairs)]
    running = await router(p, *full, migrations=0, health={"open_after": 1})
    assert await running.stream() == WHOLE
    assert migrations(running, "preempted") == 20 * pairs
    assert failures(running) == []
    for backend in running.router.fleet:
        assert (backend.failures, backend.circuit.failures) == (0, 0)
        assert not running.router.fleet.reason(backend)
    calls = [call for each in full for call in each.calls]
    assert len({call.headers["x-pds-created"] for call in calls}) == 1
    if pairs > 1:
        assert all(each.calls for each in full)


async def test_what_is_preempted_waits_for_room_as_long_as_there_are_groups(engine, router):
    waits = []

    async def has_no_room_at_first(seen, stream):
        if len(only.calls) == 1:
            await stream.head()
            await stream.put(b': pds failed 503 {"error": {"code": "preempted"}}\n\n')
            stream.end()
        elif len(waits) < 4:
            waits.append(seen)
            await asyncio.sleep(0.05)
            await stream.json(429, {"error": {"message": "full", "code": "overloaded"}})
        else:
            await speaks(seen, stream)

    p = await engine("prefill", script=speaks)
    only = await engine("decode", script=has_no_room_at_first)
    running = await router(p, only, resume_seconds=0.1)
    assert await running.stream() == WHOLE
    assert len(waits) == 4
    assert migrations(running, "preempted") == 1


async def test_without_a_journal_the_stream_ends_with_an_error(engine, router):
    async def several_choices(seen, stream):
        await stream.head()
        await stream.put(b'data: {"t":1}\n\n')
        await asyncio.sleep(0.002)
        stream.drop()

    running = await router(*[await engine("unified", script=several_choices) for _ in range(2)])
    body = await running.stream(n=2)
    assert b"several choices" in body


async def test_a_client_that_leaves_while_its_stream_waits(engine, router):
    p = await engine("prefill", script=speaks)
    only = await engine("decode", script=breaks(BORDERS[1], times=99))
    running = await router(p, only, health={"open_after": 1, "open_seconds": 30.0})
    async with running.http.post("/v1/chat/completions", json={"stream": True}) as response:
        await response.content.readuntil(b'"cd"}\n\n')
    async with asyncio.timeout(5):
        while running.router.relay.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert all(b.in_flight == b.outstanding == 0 for b in running.router.fleet)


async def test_an_answer_that_does_not_stream_starts_over(engine, router):
    calls = []

    async def dies_once(seen, stream):
        calls.append(seen)
        if len(calls) == 1:
            await stream.head(200, "application/json")
            await stream.put(b'{"half')
            stream.drop()
        else:
            await stream.json(200, {"text": "whole"})

    running = await router(*[await engine("unified", script=dies_once) for _ in range(2)])
    async with running.http.post("/v1/completions", json={"prompt": "a"}) as response:
        assert await response.json() == {"text": "whole"}
    assert calls[0].body == calls[1].body
