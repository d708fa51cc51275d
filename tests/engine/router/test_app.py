"""The router's own answers: routes, keys, limits."""

import asyncio
import json

import openai
import pytest
from pds_engine.signing import key_id
from waiting import until

CHAT = "/v1/chat/completions"


async def asked(running, path, *, method="POST", **options):
    async with running.http.request(method, path, **options) as response:
        text = await response.text()
        return response.status, json.loads(text) if text.startswith("{") else text


async def test_models_page_and_health(engine, router):
    running = await router(await engine("unified"), model="tiny")
    status, models = await asked(running, "/v1/models", method="GET")
    assert (status, models["object"]) == (200, "list")
    assert [(m["id"], m["max_model_len"]) for m in models["data"]] == [("tiny", 4096)]
    status, page = await asked(running, "/", method="GET")
    assert status == 200
    assert "<textarea" in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched from elsewhere
    for path in ("/healthz", "/readyz", "/ping"):
        assert await asked(running, path, method="GET") == (200, {"status": "ok"})


async def test_it_is_ready_without_any_backend_and_says_what_is_missing(engine, router):
    prefill = await engine("prefill")
    running = await router(prefill)
    assert (await asked(running, "/readyz", method="GET"))[0] == 200
    status, answer = await asked(running, CHAT, json={"stream": True})
    assert (status, answer["error"]["code"]) == (503, "unavailable")
    assert "no ready decode group" in answer["error"]["message"]


async def test_groups_of_different_fingerprints_are_never_paired(engine, router):
    old_p, old_d = await engine("prefill", kv="old"), await engine("decode", kv="old")
    new_p, new_d = await engine("prefill", kv="new"), await engine("decode", kv="new")
    running = await router(old_p, old_d, new_p, new_d)
    for _ in range(8):
        await running.stream()
    for p, d in ((old_p, old_d), (new_p, new_d)):
        assert {seen.headers["x-pds-peer-group"] for seen in d.calls} == {f"prefill-{p.port}"}
        assert len(p.calls) == len(d.calls) == 4


async def test_backends_says_what_each_one_is(engine, router):
    started = {"startup": {"import": 2.5, "weights": 40.0}}
    p = await engine("prefill", state=started)
    d = await engine("decode", state={"draining": True})
    waiting = await engine("prefill", kv="")
    stuck = await engine("decode", state={"ready": False, "reason": "step 7 is stuck"})
    running = await router(p, d, waiting, stuck, ready=1)
    await until(lambda: all(b.state for b in running.router.fleet))
    _, answer = await asked(running, "/pds/backends", method="GET")
    by_port = {int(b["url"].rpartition(":")[2]): b for b in answer["backends"]}
    assert by_port[p.port] == {
        "pod": f"127.0.0.1:{p.port}",
        "uid": f"127.0.0.1:{p.port}",
        "group": f"prefill-{p.port}",
        "role": "prefill",
        "incarnation": f"inc-{p.port}",
        "revision": "r1",
        "kv_fingerprint": "kv-a",
        "protocol": 1,
        "key_id": key_id(b"k" * 32),
        "url": p.url,
        "routable": True,
        "reason": "routable",
        "clock_offset": 0.0,
        "circuit": "closed",
        "requests": 0,
        "failures": 0,
        "in_flight": 0,
        "outstanding_tokens": 0,
        "startup": {"import": 2.5, "weights": 40.0},
    }
    assert by_port[d.port]["startup"] == {}
    assert (by_port[d.port]["routable"], by_port[d.port]["reason"]) == (False, "draining")
    assert by_port[stuck.port]["reason"] == "not ready: step 7 is stuck"
    assert by_port[waiting.port]["reason"] == "its ranks have not joined yet"


async def test_a_backend_that_goes_away_and_comes_back(engine, router):
    unified = await engine("unified")
    running = await router(unified, health={"misses": 2})
    await unified.stop()
    await running.settled(0)
    (backend,) = running.router.fleet
    assert running.router.fleet.reason(backend).startswith("/pds/state: ")
    await unified.start()
    await running.settled(1)
    assert b"[DONE]" in await running.stream()


async def test_one_series_per_backend(engine, router):
    p, d = await engine("prefill"), await engine("decode")
    running = await router(p, d)
    await running.stream()
    _, text = await asked(running, "/metrics", method="GET")
    for fake in (p, d):
        series = f'{{pod="127.0.0.1:{fake.port}",role="{fake.role}"}}'
        assert f"pds_router_backend_routable{series} 1.0" in text
        assert f"pds_router_backend_requests_total{series} 1.0" in text
        assert f"pds_router_backend_in_flight{series} 0.0" in text
    assert f'pds_router_requests_total{{route="{CHAT}",status="200"}} 1.0' in text


async def test_outstanding_tokens_are_those_of_open_requests(engine, router):
    async def waits(seen, stream):
        await stream.gone.wait()

    p, d = await engine("prefill", script=waits), await engine("decode", script=waits)
    running = await router(p, d)
    asking = asyncio.create_task(running.stream(max_tokens=100, n=2, messages=["x" * 394]))
    await until(lambda: d.calls)
    loads = {b.state.role: b.outstanding for b in running.router.fleet}
    assert loads == {"prefill": 100, "decode": 200}
    asking.cancel()
    await until(lambda: all(b.outstanding == 0 for b in running.router.fleet))


@pytest.mark.parametrize(
    ("body", "fault"),
    [(b"{", "JSON"), (b"", "JSON"), (b"[]", "JSON"), (b'"x"', "JSON"), (b"\xff\xfe", "JSON"),
     (b'{"pds_resume": {"output_ids": [1]}}', "pds_resume")],
)  # fmt: skip
async def test_a_body_that_is_no_request(engine, router, body, fault):
    unified = await engine("unified")
    running = await router(unified)
    status, answer = await asked(running, CHAT, data=body)
    assert status == 400
    assert fault in answer["error"]["message"]
    assert sorted(answer["error"]) == ["code", "message", "param", "type"]
    assert unified.calls == []


async def test_a_body_above_the_bound_is_refused_unread(engine, router):
    running = await router(await engine("unified"), max_body_bytes=2048)
    status, answer = await asked(running, CHAT, data=b"x" * 4096)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")

    async def chunks():
        for _ in range(10):
            yield b"x" * 1000

    status, answer = await asked(running, CHAT, data=chunks())
    assert (status, answer["error"]["code"]) == (413, "body_too_large")


async def test_a_client_that_dawdles_over_its_body_gets_408(engine, router):
    running = await router(await engine("unified"), body_timeout=0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", int(running.url.rpartition(":")[2]))
    writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{".encode())
    assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    assert b"body_timeout" in await reader.read()  # and the connection is closed
    writer.close()


async def test_beyond_the_bound_of_open_requests_the_answer_is_429(engine, router):
    async def waits(seen, stream):
        await stream.gone.wait()

    unified = await engine("unified", script=waits)
    running = await router(unified, max_in_flight=2)
    open_ones = [asyncio.create_task(running.stream()) for _ in range(2)]
    await until(lambda: len(unified.calls) == 2)
    async with running.http.post(CHAT, json={"stream": True}) as response:
        assert (response.status, response.headers["retry-after"]) == (429, "1")
        assert (await response.json())["error"]["code"] == "overloaded"
    for task in open_ones:
        task.cancel()
    await until(lambda: running.router.relay.in_flight == 0)


async def upload(running, length, data):
    """The beginning of a body, of which the rest does not come."""
    port = int(running.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode())
    writer.write(data)
    return reader, writer


async def test_a_request_is_open_from_before_its_body_has_come(engine, router):
    running = await router(await engine("unified"), max_in_flight=1)
    _, writer = await upload(running, 100, b"{")
    await until(lambda: running.router.relay.in_flight == 1)
    async with running.http.post(CHAT, json={}) as response:
        assert response.status == 429
    writer.close()
    await until(lambda: running.router.relay.in_flight == 0)
    assert await running.stream()


async def test_the_bodies_of_all_requests_have_a_bound_together(engine, router):
    running = await router(await engine("unified"), max_held_bytes=10_000)
    room = running.router._room
    _, first = await upload(running, 50_000, b"x" * 9_000)
    await until(lambda: room.held == 9_000)
    second, writer = await upload(running, 50_000, b"x" * 2_000)
    assert (await second.readline()).startswith(b"HTTP/1.1 429")
    writer.close()
    first.close()
    await until(lambda: room.held == 0)
    async with running.http.post(CHAT, json={"stream": True, "x": "x" * 50_000}) as alone:
        assert alone.status == 200  # one alone may hold more
        await alone.read()
    await until(lambda: room.held == 0)


async def test_api_keys(engine, router, tmp_path):
    (tmp_path / "team-a").write_text("sk-one\n")
    (tmp_path / "team-b").write_text("sk-two")
    (tmp_path / "..data").mkdir()
    running = await router(await engine("unified"), auth={"secret_dir": str(tmp_path)})
    for path, method in ((CHAT, "POST"), ("/v1/models", "GET"), ("/tokenize", "POST")):
        for wrong in ({}, {"authorization": "Bearer sk-three"}, {"authorization": "sk-one"}):
            status, answer = await asked(running, path, method=method, headers=wrong)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    for key in ("sk-one", "sk-two"):
        headers = {"authorization": f"Bearer {key}"}
        assert (await asked(running, "/v1/models", method="GET", headers=headers))[0] == 200
        assert (await asked(running, CHAT, json={"stream": True}, headers=headers))[0] == 200
    assert (await asked(running, "/healthz", method="GET"))[0] == 200


async def test_routes_that_any_one_backend_answers(engine, router):
    async def echo(seen, stream):
        assert not any(name.startswith("x-pds") for name in seen.headers)
        await stream.json(200, {"path": seen.path, "body": seen.body.decode()})

    running = await router(await engine("decode", script=echo))
    for path in ("/tokenize", "/detokenize"):
        answer = await asked(running, path, data=b'{"prompt":"a"}', headers={"x-pds-role": "x"})
        assert answer == (200, {"path": path, "body": '{"prompt":"a"}'})
    answer = await asked(running, "/tokenizer_info", method="GET")
    assert answer == (200, {"path": "/tokenizer_info", "body": ""})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", CHAT, 405), ("POST", "/v1/models", 405), ("POST", "/pds/drain", 404),
     ("GET", "/pds/state", 404), ("POST", "/pds/peers/gone", 404), ("GET", "/docs", 404)],
)  # fmt: skip
async def test_only_the_routers_own_routes_are_served(engine, router, method, path, status):
    unified = await engine("unified")
    running = await router(unified)
    got, answer = await asked(running, path, method=method)
    assert got == status
    assert path in answer["error"]["message"]
    assert unified.calls == []


async def test_without_keys_only_unified_groups_can_be_served(engine, router):
    running = await router(await engine("prefill"), await engine("decode"), key=None)
    status, answer = await asked(running, CHAT, json={"stream": True})
    assert status == 503
    assert "set keys_dir" in answer["error"]["message"]
    unified = await engine("unified")
    running = await router(unified, key=None)
    assert (await asked(running, CHAT, json={"stream": True}))[0] == 200
    assert not any(name.startswith("x-pds") for name in unified.calls[0].headers)


async def test_the_openai_sdk_unchanged(engine, router):
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}

    def chunk(text, finish=None):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
        return b": pds 1 5\ndata: " + json.dumps({**base, "choices": [choice]}).encode() + b"\n\n"

    async def script(seen, stream):
        role = seen.headers["x-pds-role"]
        if seen.json["messages"][0]["content"] == "fail":
            await stream.json(400, {"error": {"message": "too long", "code": "c", "type": "t"}})
            return
        await stream.head()
        if role == "prefill":
            await stream.put(chunk("Hel"))
        elif seen.json["messages"][0]["content"] == "die":
            await stream.put(chunk("l"))
            await asyncio.sleep(0.02)
            stream.drop()
            return
        else:
            await stream.put(chunk("lo"))
            await stream.put(chunk("", "stop") + b"data: [DONE]\n\n")
        stream.end()

    running = await router(
        await engine("prefill", script=script), await engine("decode", script=script)
    )
    async with openai.AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as sdk:

        async def say(text):
            stream = await sdk.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": text}], stream=True
            )
            return "".join([c.choices[0].delta.content or "" async for c in stream])

        assert await say("hello") == "Hello"
        with pytest.raises(openai.BadRequestError, match="too long"):
            await say("fail")
        with pytest.raises(openai.APIError, match="decode group was lost"):
            await say("die")
