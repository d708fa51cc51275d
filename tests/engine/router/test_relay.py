"""Relaying through real sockets: order, retries, cancellation, limits."""

import asyncio
import json
import time

import pytest
from pds_engine import signing
from pds_engine.errors import Forbidden
from waiting import until

KEY = b"k" * 32
HELLO = b'data: {"t":1}\n\ndata: {"t":2}\n\ndata: [DONE]\n\n'


def events(body):
    return [
        json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: {")
    ]


def dies_at_once():
    async def script(seen, stream):
        stream.drop()

    return script


def refuses(status, code="overloaded", **headers):
    async def script(seen, stream):
        content = {"error": {"message": "no", "type": "x", "param": "p", "code": code}}
        await stream.json(status, content, **headers)

    return script


async def test_a_stream_is_prefills_bytes_then_decodes_without_the_journal(engine, router):
    running = await router(await engine("prefill"), await engine("decode"))
    assert await running.stream() == HELLO


async def test_both_sides_get_the_same_body_and_one_set_of_signed_headers(engine, router):
    p, d = await engine("prefill"), await engine("decode")
    running = await router(p, d)
    body = b'{"messages": [{"role":"user","content":"hi"}],  "stream": true, "x_unknown": [1.50]}'
    headers = {"x-pds-peer": "evil:1", "X-PDS-Signature": "0", "authorization": "Bearer k"}
    headers["traceparent"] = "00-1-2-01"
    async with running.http.post("/v1/chat/completions", data=body, headers=headers) as response:
        await response.read()
        request_id = response.headers["x-request-id"]
    assert request_id.startswith("chatcmpl-")
    (at_p,), (at_d,) = p.calls, d.calls
    assert at_p.body == at_d.body == body
    for seen in (at_p, at_d):
        signing.verify(KEY, "POST", "/v1/chat/completions", seen.headers, time.time())
        assert "authorization" not in seen.headers
        assert seen.headers["traceparent"] == "00-1-2-01"
        assert seen.headers["x-pds-request-id"] == request_id
        assert seen.headers["x-pds-journal"] == "1"
    assert at_p.headers["x-pds-attempt"] == at_d.headers["x-pds-attempt"] != ""
    assert at_p.headers["x-pds-seed"] == at_d.headers["x-pds-seed"]
    assert at_p.headers["x-pds-created"] == at_d.headers["x-pds-created"]
    assert (at_p.headers["x-pds-role"], at_d.headers["x-pds-role"]) == ("prefill", "decode")
    assert "x-pds-peer" not in at_p.headers
    assert at_d.headers["x-pds-peer"] == f"127.0.0.1:{p.port + 1}"
    assert at_d.headers["x-pds-peer-group"] == f"prefill-{p.port}"
    tampered = {**at_d.headers, "x-pds-peer": "evil:1"}
    with pytest.raises(Forbidden):
        signing.verify(KEY, "POST", "/v1/chat/completions", tampered, time.time())


async def test_a_clients_seed_is_kept(engine, router):
    unified = await engine("unified")
    running = await router(unified)
    await running.stream(seed=42)
    assert unified.calls[0].headers["x-pds-seed"] == "42"


async def test_decodes_bytes_wait_for_prefills_end(engine, router):
    release = asyncio.Event()

    async def slow(seen, stream):
        await stream.head()
        await stream.put(b'data: {"t":1}\n\n')
        await release.wait()
        stream.end()

    p, d = await engine("prefill", script=slow), await engine("decode")
    running = await router(p, d)
    async with running.http.post("/v1/chat/completions", json={"stream": True}) as response:
        assert await response.content.readuntil(b"\n\n") == b'data: {"t":1}\n\n'
        await until(lambda: d.streams)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await response.content.readany()
        release.set()
        assert await response.read() == HELLO[len(b'data: {"t":1}\n\n') :]


async def test_an_answer_that_does_not_stream_is_decodes(engine, router):
    running = await router(await engine("prefill"), await engine("decode"))
    async with running.http.post("/v1/completions", json={"prompt": "a"}) as response:
        content = await response.json()
    assert content == {"id": response.headers["x-request-id"], "by": "decode"}
    assert content["id"].startswith("cmpl-")


async def test_a_large_answer_that_does_not_stream_comes_whole(engine, router):
    async def large(seen, stream):
        await stream.json(200, {"text": "x" * 3_000_000})

    running = await router(await engine("unified", script=large))
    async with running.http.post("/v1/completions", json={"prompt": "a"}) as response:
        assert len((await response.json())["text"]) == 3_000_000


async def test_a_slow_client_holds_the_engine_back(engine, router):
    sent = 0

    async def endless(seen, stream):
        nonlocal sent
        await stream.head()
        event = b"data: " + b"x" * 65536 + b"\n\n"
        while not stream.gone.is_set() and sent < 64 << 20:
            await stream.put(event)
            sent += len(event)
            await asyncio.sleep(0)

    running = await router(await engine("unified", script=endless))
    async with running.http.post("/v1/chat/completions", json={"stream": True}) as response:
        await response.content.readexactly(1)
        before = -1
        while before != sent:  # until it stands still
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 48 << 20
    (backend,) = running.router.fleet
    await until(lambda: backend.in_flight == 0)


@pytest.mark.parametrize("leaves", ["before the first byte", "in mid-stream"])
async def test_a_client_that_leaves_is_felt_on_both_sides_at_once(engine, router, leaves):
    async def waits(seen, stream):
        if leaves == "in mid-stream":
            await stream.head()
            if seen.headers["x-pds-role"] == "prefill":
                await stream.put(b"data: {}\n\n")
        await stream.gone.wait()

    p, d = await engine("prefill", script=waits), await engine("decode", script=waits)
    running = await router(p, d)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    body = b'{"stream": true}'
    writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    await until(lambda: p.streams and d.streams)
    if leaves == "in mid-stream":
        await reader.readuntil(b"data: {}")
    began = time.monotonic()
    writer.close()
    await until(lambda: p.streams[0].gone.is_set() and d.streams[0].gone.is_set())
    assert time.monotonic() - began < 1
    await until(lambda: all(b.in_flight == b.outstanding == 0 for b in running.router.fleet))
    assert [b.circuit.failures for b in running.router.fleet] == [0, 0]


async def test_a_prefill_group_that_dies_is_replaced(engine, router):
    good, decode = await engine("prefill"), await engine("decode")
    bad = await engine("prefill", script=dies_at_once())
    running = await router(good, decode, bad)
    for _ in range(6):
        assert await running.stream() == HELLO
    assert bad.calls


async def test_a_decode_group_that_dies_while_prefill_works_is_replaced(engine, router):
    async def waits_then_hello(seen, stream):
        """A client whose decode group has died waits until the router knows, and leaves."""
        await until(lambda: attempt(seen) in {*map(attempt, bad.calls), *map(attempt, good.calls)})
        if attempt(seen) in map(attempt, bad.calls):
            await stream.gone.wait()
        await stream.head()
        await stream.put(b'data: {"t":1}\n\n')
        stream.end()

    def attempt(seen):
        return seen.headers["x-pds-attempt"]

    p = await engine("prefill", script=waits_then_hello)
    bad, good = await engine("decode", script=dies_at_once()), await engine("decode")
    running = await router(p, bad, good)
    for _ in range(4):
        assert await running.stream() == HELLO
    assert bad.calls


async def test_a_4xx_is_the_clients_and_is_not_tried_again(engine, router):
    p, d = await engine("prefill", script=refuses(400, "too_long")), await engine("decode")
    spare = await engine("prefill", script=refuses(400, "too_long"))
    running = await router(p, d, spare)
    async with running.http.post("/v1/chat/completions", json={"stream": True}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "too_long"
    assert len(p.calls) + len(spare.calls) == 1


async def test_a_request_whose_time_is_over_is_not_tried_again_and_nobodys_fault(engine, router):
    late = refuses(504, "deadline_passed")
    one, other = await engine("unified", script=late), await engine("unified", script=late)
    running = await router(one, other)
    async with running.http.post("/v1/chat/completions", json={"stream": True}) as response:
        assert response.status == 504
        assert (await response.json())["error"]["code"] == "deadline_passed"
    assert len(one.calls) + len(other.calls) == 1
    assert [backend.circuit.failures for backend in running.router.fleet] == [0, 0]


@pytest.mark.parametrize(("code", "blamed"), [("not_finite", False), ("internal_error", True)])
async def test_a_prompt_without_a_finite_answer_opens_no_circuit(engine, router, code, blamed):
    """A client that repeats it would else close every group to everybody."""
    unified = await engine("unified", script=refuses(500, code))
    running = await router(unified, attempts=1)
    async with running.http.post("/v1/chat/completions", json={"stream": True}) as response:
        assert response.status == 500
        assert (await response.json())["error"]["code"] == code
    assert [backend.circuit.failures for backend in running.router.fleet] == [int(blamed)]


async def test_a_busy_engines_429_is_passed_on_when_no_other_is_there(engine, router):
    running = await router(await engine("unified", script=refuses(429, retry_after="3")))
    async with running.http.post("/v1/chat/completions", json={"stream": True}) as response:
        assert (response.status, response.headers["retry-after"]) == (429, "3")


async def test_a_failed_transfer_blames_the_side_that_did_not_report_it(engine, router):
    async def silent(seen, stream):
        await stream.gone.wait()

    bad, good = await engine("prefill", script=silent), await engine("prefill")

    async def decode(seen, stream):
        if seen.headers["x-pds-peer-group"] == f"prefill-{bad.port}":
            await refuses(503, "transfer_failed")(seen, stream)
        else:
            await stream.head()
            await stream.put(HELLO[len(b'data: {"t":1}\n\n') :])
            stream.end()

    running = await router(bad, good, await engine("decode", script=decode))
    for _ in range(4):
        assert await running.stream() == HELLO


async def test_groups_that_take_nothing_new_are_no_attempts(engine, router):
    """As many as drain at once; what fails otherwise ends the attempts."""
    drain = [await engine("unified", script=refuses(503, "unavailable")) for _ in range(5)]
    good = await engine("unified")
    running = await router(*drain, good, attempts=1)
    for _ in range(6):
        assert await running.stream() == HELLO
    assert len(good.calls) == 6


async def test_an_engine_that_refuses_our_signature_is_our_fault(engine, router):
    running = await router(await engine("unified", script=refuses(403, "forbidden")), attempts=1)
    async with running.http.post("/v1/chat/completions", json={"stream": True}) as response:
        assert response.status == 502
        assert "signature" in (await response.json())["error"]["message"]


async def test_after_the_first_byte_a_loss_ends_the_stream_with_an_error_event(engine, router):
    async def dies_in_mid_event(seen, stream):
        await stream.head()
        await stream.put(b'data: {"t":2}\n\ndata: {"t"')
        await asyncio.sleep(0.02)
        stream.drop()

    running = await router(
        await engine("prefill"), await engine("decode", script=dies_in_mid_event)
    )
    *whole, last = events(await running.stream())
    assert whole == [{"t": 1}, {"t": 2}]
    assert last["error"]["code"] == "unavailable"
    assert "decode group was lost" in last["error"]["message"]


async def test_after_the_first_byte_a_refusal_becomes_an_error_event(engine, router):
    async def late(seen, stream):
        await asyncio.sleep(0.05)
        await refuses(503, "transfer_failed")(seen, stream)

    pair = await engine("prefill"), await engine("decode", script=late)
    running = await router(*pair, migrations=0)
    *whole, last = events(await running.stream())
    assert whole == [{"t": 1}]
    assert last["error"]["code"] == "transfer_failed"


async def test_requests_of_a_silent_backend_are_given_up(engine, router):
    async def hangs(seen, stream):
        await stream.gone.wait()

    bad = await engine("unified", script=hangs)
    health = {"lost_after": 0.4, "timeout": 0.1, "misses": 2}
    running = await router(bad, health=health, attempts=1)
    asking = asyncio.create_task(
        running.http.post("/v1/chat/completions", json={"stream": True}).__aenter__()
    )
    await until(lambda: bad.calls)
    bad.silent = True
    response = await asking
    assert response.status == 503
    assert "silent" in (await response.json())["error"]["message"]
    bad.silent = False
    await running.settled(1)


async def test_an_open_circuit_lets_one_trial_through(engine, router):
    async def dies(seen, stream):
        await stream.head()
        stream.drop()

    unified = await engine("unified", script=dies)
    health = {"open_after": 2, "open_seconds": 0.2}
    running = await router(unified, health=health, attempts=1)
    for _ in range(2):
        async with running.http.post("/v1/chat/completions", json={"stream": True}) as response:
            assert response.status == 503
    async with running.http.post("/v1/chat/completions", json={"stream": True}) as response:
        assert "circuit open" in (await response.json())["error"]["message"]
    assert len(unified.calls) == 2
    unified.script = type(unified)("unified").script
    await running.settled(1)
    assert await running.stream() == HELLO
    assert next(iter(running.router.fleet)).circuit.failures == 0


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
async def test_requests_that_a_group_fails_of_close_it_to_nobody_else(engine, router, path):
    """A fault of ours that one client's requests lead to: others are answered all the while."""

    async def faulty(seen, stream):
        if b"poison" in seen.body:
            fault = {"message": "unexpected", "code": "internal_error"}
            return await stream.json(500, {"error": fault})
        return await good(seen, stream)

    fleet = [await engine("unified") for _ in range(2)]
    good = fleet[0].script
    for each in fleet:
        each.script = faulty
    running = await router(*fleet, health={"open_after": 2, "open_seconds": 60})
    for _ in range(8):
        async with running.http.post(path, json={"user": "poison"}) as response:
            assert response.status == 500
    assert {b.circuit.phase(0.0) for b in running.router.fleet} == {"open"}
    async with running.http.post(path, json={"stream": True}) as response:
        assert response.status == 200
    assert "closed" in {b.circuit.phase(0.0) for b in running.router.fleet}


async def test_a_debug_log_tells_which_pair_each_attempt_goes_to(engine, router, caplog):
    p, d = await engine("prefill"), await engine("decode")
    running = await router(p, d)
    with caplog.at_level("DEBUG", "pds_engine.router.pairs"):
        assert await running.stream() == HELLO
    (content,) = caplog.records
    assert content.request_id.startswith("chatcmpl-")
    assert (content.prefill, content.decode) == (f"127.0.0.1:{p.port}", f"127.0.0.1:{d.port}")
