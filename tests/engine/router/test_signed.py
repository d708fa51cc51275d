"""Engines whose clocks or keys differ from the router's, and what it believes of their answers."""

import pytest
from pds_engine.errors import Forbidden, WrongClock
from pds_engine.router.keyring import Ring
from pds_engine.signing import (
    LONGEST_SECONDS,
    NOW,
    NOW_SIGNATURE,
    clock_of,
    key_id,
    signed,
    verify,
)
from waiting import until

KEY, LATER = b"k" * 32, b"l" * 32
HELLO = b'data: {"t":1}\n\ndata: {"t":2}\n\ndata: [DONE]\n\n'
OURS = {"x-pds-role": "unified"}
SIGNED = signed(KEY, "POST", "/x", OURS, 1060)


def refusal(now, headers=SIGNED):
    with pytest.raises(Forbidden) as caught:
        verify(KEY, "POST", "/x", headers, now)
    return caught.value


@pytest.mark.parametrize("now", [1000, 1060, 1060 - LONGEST_SECONDS])
def test_a_signature_holds_while_clocks_differ_a_little(now):
    verify(KEY, "POST", "/x", SIGNED, now)


@pytest.mark.parametrize("now", [1061.5, 9000, 1059 - LONGEST_SECONDS, 0])
def test_one_out_of_date_learns_the_time(now):
    error = refusal(now)
    assert (type(error), error.code, error.status) == (WrongClock, "clock", 403)
    assert clock_of(KEY, SIGNED["x-pds-signature"], error.headers) == int(now)


def test_nobody_learns_the_time_whose_signature_is_not_ours():
    for name, value in {"x-pds-role": "decode", "x-pds-expiry": "9999"}.items():
        assert type(refusal(9000, {**SIGNED, name: value})) is Forbidden
    other = signed(bytes(32), "POST", "/x", OURS, 1060)
    assert type(refusal(9000, other)) is Forbidden
    assert type(refusal(9000, {**SIGNED, "x-pds-signature": "é" * 64})) is Forbidden


@pytest.mark.parametrize(
    "change",
    [
        {NOW: "9001"},
        {NOW: "-9000"},
        {NOW: "9" * 400},
        {NOW: "٣٠٠٠"},
        {NOW: ""},
        {NOW_SIGNATURE: "0" * 64},
        {NOW_SIGNATURE: "é"},
    ],
)
def test_a_time_that_is_not_signed_is_not_believed(change):
    headers = {**refusal(9000).headers, **change}
    assert clock_of(KEY, SIGNED["x-pds-signature"], headers) is None


def test_the_time_for_one_request_is_not_believed_of_another():
    headers = refusal(9000).headers
    assert clock_of(KEY, signed(KEY, "POST", "/x", OURS, 1061)["x-pds-signature"], headers) is None
    assert clock_of(bytes(32), SIGNED["x-pds-signature"], headers) is None


async def backends(running):
    async with running.http.get("/pds/backends") as response:
        return (await response.json())["backends"]


@pytest.mark.parametrize("ahead", [75, -900, 86_400])
async def test_groups_whose_clocks_differ_serve(engine, router, ahead):
    prefill = await engine("prefill", key=KEY, ahead=ahead)
    decode = await engine("decode", key=KEY)
    running = await router(prefill, decode)
    for _ in range(3):
        assert await running.stream() == HELLO
    headers = {entry["role"]: entry for entry in await backends(running)}
    assert headers["prefill"]["clock_offset"] == pytest.approx(ahead, abs=3)
    assert headers["decode"]["clock_offset"] == 0
    assert [entry["failures"] for entry in headers.values()] == [0, 0]


async def test_a_clock_that_was_set_right_is_no_longer_reported(engine, router):
    unified = await engine("unified", key=KEY, ahead=900)
    running = await router(unified)
    [backend] = running.router.fleet
    assert backend.clock > 800
    unified.ahead = 0
    await until(lambda: backend.clock == 0)
    assert await running.stream() == HELLO


async def test_a_clock_that_jumps_between_looks_costs_no_request(engine, router):
    unified = await engine("unified", key=KEY)
    running = await router(unified, health={"interval": 30.0})
    [backend] = running.router.fleet
    unified.ahead = 900
    assert await running.stream() == HELLO
    assert unified.refused == 1
    assert backend.clock == pytest.approx(900, abs=3)
    assert await running.stream() == HELLO
    assert (unified.refused, backend.failures) == (1, 0)


async def test_an_engine_of_another_key_is_not_routed_to_and_says_why(engine, router):
    bad = await engine("unified", key=bytes(32))
    good = await engine("unified", key=KEY)
    running = await router(bad, good, ready=1)
    for _ in range(4):
        assert await running.stream() == HELLO
    assert bad.calls == []
    [reason] = [entry["reason"] for entry in await backends(running) if not entry["routable"]]
    assert "refuses the router's signature" in reason
    assert "keys differ" in reason


async def test_an_engine_whose_key_changes_is_left_out_at_its_next_look(engine, router):
    unified = await engine("unified", key=KEY)
    running = await router(unified)
    [backend] = running.router.fleet
    unified.key = bytes(32)
    await until(lambda: running.router.fleet.reason(backend))
    unified.key = KEY
    await until(lambda: not running.router.fleet.reason(backend))


async def test_a_group_of_a_later_key_is_asked_by_that_from_the_first(engine, router):
    later = await engine("unified", key=LATER, ahead=900, state={"key_id": key_id(LATER)})
    running = await router(later, ready=0)
    [backend] = running.router.fleet
    await until(lambda: backend.state is not None)
    assert "has not come to this router yet" in running.router.fleet.reason(backend)
    ring = Ring({key_id(key): key for key in (KEY, LATER)}, key_id(KEY))
    running.router.fleet.keys.take(ring, ())
    await until(lambda: backend.clock > 800)
    assert await running.stream() == HELLO
    assert running.router.fleet.reason(backend) == ""
    assert backend.failures == 0


async def test_a_former_engine_that_refuses_requests_alone_closes_its_circuit(engine, router):
    """Its state is for everybody, and says nothing of keys."""
    former = await engine("unified", key=bytes(32), checks_state=False)
    running = await router(former)
    for _ in range(3):
        async with running.http.post("/v1/chat/completions", json={"messages": []}) as response:
            assert response.status == 502
            assert "signature" in (await response.json())["error"]["message"]
    [backend] = running.router.fleet
    assert "circuit open" in running.router.fleet.reason(backend)


async def test_a_router_without_a_key_signs_nothing(engine, router):
    unified = await engine("unified")
    running = await router(unified, key=None)
    assert await running.stream() == HELLO
    assert not any(name.startswith("x-pds-exp") for seen in unified.seen for name in seen.headers)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
ODD = {
    "endless": b" " * 65536,
    "endless headers": b"x-more: " + b"y" * 60_000 + b"\r\n",
    "a length in words": b'{"role": "unified", "max_model_len": "long"}',
    "a length below nothing": b'{"role": "unified", "max_model_len": -1}',
    "another role": b'{"role": "boss"}',
    "a fingerprint without end": b'{"role": "unified", "kv_fingerprint": "%b"}' % (b"k" * 5000),
    "deep": b'{"role": "unified", "kernels": ' + b"[" * 100_000,
}


@pytest.mark.parametrize("kind", ODD)
async def test_an_odd_state_makes_one_group_unroutable_and_no_other(engine, router, kind):
    odd, good = await engine("unified"), await engine("unified")
    running = await router(odd, good)
    body = ODD[kind]
    if kind == "endless headers":
        odd.rude = body
    else:
        odd.rude = HEAD % (1 << 30 if kind == "endless" else len(body)) + body
    [backend] = [b for b in running.router.fleet if b.found.port == odd.port]
    await until(lambda: running.router.fleet.reason(backend))
    assert await running.stream() == HELLO
    assert "/pds/state" in running.router.fleet.reason(backend)


async def test_no_redirect_of_a_state_is_followed(engine, router):
    odd, good = await engine("unified"), await engine("unified")
    running = await router(odd, good)
    odd.rude = (
        b"HTTP/1.1 307 X\r\nlocation: %b/v1/models\r\ncontent-length: 0\r\n\r\n" % good.url.encode()
    )
    [backend] = [b for b in running.router.fleet if b.found.port == odd.port]
    await until(lambda: running.router.fleet.reason(backend))
    assert not [seen for seen in good.seen if seen.path == "/v1/models"]
