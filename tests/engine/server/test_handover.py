"""The router's view of a pair: P's body and D's body, one behind the other, are one server's."""

import time

import pytest
from pds_engine import signing
from pds_engine.messages import Cancel, Drain, Failed, PeerGone, Source, Submit, Token

EOS = 1
C, H = "/v1/completions", "/v1/chat/completions"


def headers(key: bytes, path: str, **more: str) -> dict[str, str]:
    ours = {f"x-pds-{name.replace('_', '-')}": value for name, value in more.items()}
    return signing.signed(key, "POST", path, ours, int(time.time()) + 60)


def common(role: str, **more: str) -> dict[str, str]:
    both = {"request_id": "cmpl-1", "created": "1700000000", "seed": "11", "role": role}
    peer = {"peer": "10.0.0.1:8001", "peer_group": "p-0"} if role == "decode" else {}
    return {**both, **peer, **more}


async def ask(served, script, key, role, path, body, **more):
    async with served(script, role=role) as s:
        signed = headers(key, path, **common(role, **more))
        answer = await s.client.post(path, json=body, headers=signed)
        assert answer.status_code == 200, answer.text
    return answer.content, s.scheduler


BODIES = [
    (C, {"prompt": "a"}, "one two 😀 three"),
    (C, {"prompt": "a", "echo": True, "stop": " two"}, "one two"),
    (C, {"prompt": "a", "stop": "1"}, "1 2 3"),  # the first token ends it
    (C, {"prompt": "a", "max_tokens": 1}, "1 2 3"),
    (C, {"prompt": ["a", "b"], "n": 2}, "1 2"),
    (C, {"prompt": "a"}, "😀"),  # the first token is a fragment
    (C, {"prompt": "a"}, ""),  # the end of the sequence at once
    (H, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 7}, "one two 😀 three"),
    (H, {"messages": [{"role": "user", "content": "a"}]}, ""),
]


@pytest.mark.parametrize("journal", ["0", "1"])
@pytest.mark.parametrize(("path", "body", "text"), BODIES)
async def test_a_pair_streams_what_one_server_would(
    served, script, tokenizer, key, path, body, text, journal
):
    ids = script([*tokenizer.encode(text), EOS], cached=1)
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    unified, _ = await ask(served, ids, key, "unified", path, body, journal=journal)
    prefill, p = await ask(served, ids, key, "prefill", path, body, journal=journal)
    decode, d = await ask(served, ids, key, "decode", path, body, journal=journal)
    several = isinstance(body.get("prompt"), list)
    if several:  # choices alternate by when their tokens come; each one's own order is kept
        assert sorted((prefill + decode).split(b"\n\n")) == sorted(unified.split(b"\n\n"))
    else:
        assert prefill + decode == unified
    assert prefill.count(b"data:") == (4 if several else 1)
    assert b"[DONE]" not in prefill
    assert (b": pds " in unified) == (journal == "1" and not several)
    sent = d.of(Submit)
    assert [s.request_id for s in sent] == [s.request_id for s in p.of(Submit)]
    assert sent[0].source == Source(address="10.0.0.1:8001", group="p-0")
    assert {(s.seed, s.role_hint) for s in sent} == {(11, "decode")}
    assert p.of(Submit)[0].source is None
    assert p.of(Cancel) == []


async def test_the_journal_names_every_token_once(served, script, tokenizer, key):
    ids = [*tokenizer.encode("1 😀"), EOS]
    body = {"prompt": "a", "stream": True}
    text, _ = await ask(served, script(ids), key, "unified", C, body, journal="1")
    lines = [line.split() for line in text.decode().split("\n") if line.startswith(": pds ")]
    named = [int(id) for line in lines for id in line[3].split(",")]
    assert named == ids
    total = 0
    for line in lines:
        total += len(line[3].split(","))
        assert int(line[2]) == total


@pytest.mark.parametrize("path", [C, H])
async def test_a_whole_answer_is_decode_s(served, script, tokenizer, key, path):
    ids = script([*tokenizer.encode("1 2"), EOS])
    body = {"prompt": "a"} if path == C else {"messages": [{"role": "user", "content": "a"}]}
    unified, _ = await ask(served, ids, key, "unified", path, body)
    prefill, _ = await ask(served, ids, key, "prefill", path, body)
    decode, _ = await ask(served, ids, key, "decode", path, body)
    assert prefill == b""
    assert decode == unified


@pytest.mark.parametrize("known", [1, 2, 3])
async def test_a_stream_goes_on_where_it_broke(served, script, tokenizer, key, known):
    ids = [*tokenizer.encode("1 2 3"), EOS]
    body = {"prompt": "a", "stream": True, "max_tokens": 9}
    whole, _ = await ask(served, script(ids), key, "unified", C, body)
    body["pds_resume"] = {"output_ids": ids[:known]}
    rest, s = await ask(served, script(ids), key, "unified", C, body)
    prefill, _ = await ask(served, script(ids), key, "prefill", C, body)
    decode, _ = await ask(served, script(ids), key, "decode", C, body)
    events = whole.split(b"\n\n")
    assert rest == prefill + decode == b"\n\n".join(events[known:])
    (submit,) = s.of(Submit)
    assert submit.output_ids == tuple(ids[:known])


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_a_client_is_sent_to_the_router(served, script, role):
    async with served(script([300]), role=role) as s:
        answer = await s.client.post(C, json={"prompt": "a"})
    assert answer.status_code == 403
    assert "router" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"x-pds-seed": "12"}, 403),
        ({"x-pds-peer": "6.6.6.6:1"}, 403),
        ({"x-pds-signature": "0" * 64}, 403),
        ({"x-pds-extra": "1"}, 403),
    ],
)
async def test_forged_headers(served, script, key, change, status):
    async with served(script([300])) as s:
        signed = {**headers(key, C, **common("unified")), **change}
        answer = await s.client.post(C, json={"prompt": "a"}, headers=signed)
        assert s.scheduler.of(Submit) == []
    assert answer.status_code == status


@pytest.mark.parametrize(("method", "path"), [("POST", C), ("GET", "/pds/state")])
@pytest.mark.parametrize("late", [120, -900])
async def test_a_signature_of_another_time_learns_our_time(served, script, key, method, path, late):
    """A signer who signs anew by our time is heard."""
    async with served(script([300])) as s:
        sent = signing.signed(key, method, path, {}, int(time.time()) + 60 - late)
        answer = await s.client.request(method, path, json={"prompt": "a"}, headers=sent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "clock")
        theirs = signing.clock_of(key, sent[signing.SIGNATURE], answer.headers)
        assert theirs == pytest.approx(time.time(), abs=5)
        again = signing.signed(key, method, path, {}, int(theirs) + 60)
        answer = await s.client.request(method, path, json={"prompt": "a"}, headers=again)
        assert answer.status_code == 200


async def test_the_state_is_everybodys_but_not_by_another_key(served, script):
    async with served(script([300])) as s:
        assert (await s.client.get("/pds/state")).status_code == 200
        sent = signing.signed(bytes(32), "GET", "/pds/state", {}, int(time.time()) + 60)
        answer = await s.client.get("/pds/state", headers=sent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
        assert signing.NOW not in answer.headers


@pytest.mark.parametrize(
    ("role", "given"),
    [
        ("prefill", common("decode")),
        ("unified", common("prefill")),
        ("decode", {**common("decode"), "peer": "nowhere"}),
        ("decode", common("decode", peer_group="")),
        ("unified", common("unified", seed="x")),
    ],
)
async def test_malformed_headers(served, script, key, role, given):
    async with served(script([300]), role=role) as s:
        answer = await s.client.post(C, json={"prompt": "a"}, headers=headers(key, C, **given))
    assert answer.status_code == 400


async def test_internal_calls_are_signed(served, script, key):
    async with served(script([300])) as s:
        for path, body in [
            ("/pds/drain", {"deadline_seconds": 5}),
            ("/pds/peers/gone", {"incarnation": "uid-1"}),
        ]:
            assert (await s.client.post(path, json=body)).status_code == 403
            signed = headers(key, path)
            assert (await s.client.post(path, json={}, headers=signed)).status_code == 400
            assert (await s.client.post(path, json=body, headers=signed)).status_code == 200
        assert await s.scheduler.until(PeerGone) == [PeerGone(incarnation="uid-1")]
        assert await s.scheduler.until(Drain) == [Drain(deadline_seconds=5.0)]
        answer = await s.client.post(C, json={"prompt": "a"})
        state = (await s.client.get("/pds/state")).json()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert state["draining"] is True


async def test_a_failure_within_a_stream_is_an_event(served, tokenizer, read_events):
    def failing(submit: Submit):
        name = submit.request_id
        yield Token(request_id=name, index=0, token=300)
        yield Failed(request_id=name, code="transfer_failed", message="peer lost", status=503)

    async with served(failing) as s:
        answer = await s.client.post(C, json={"prompt": "a", "stream": True})
    assert answer.status_code == 200
    first, error = read_events(answer.text)  # and no [DONE]
    assert first["choices"][0]["text"] == tokenizer.decode([300])
    assert error == {
        "error": {
            "message": "peer lost",
            "type": "server_error",
            "param": None,
            "code": "transfer_failed",
        }
    }
