"""A stream that another pair resumes: with what came before, it is the stream of one server."""

import time

import pytest
from pds_engine import signing
from pds_engine.messages import Failed, Submit, Token, TokenLogprobs
from pds_engine.router.sse import EventReader

EOS = 1
C, H = "/v1/completions", "/v1/chat/completions"
CHAT = [{"role": "user", "content": "a"}]
REQUESTS = [
    (C, {"prompt": "a"}, "one two 😀 three"),
    (C, {"prompt": "a", "stop": ["three four", "five"]}, "one two three five six"),
    (C, {"prompt": "a", "stop": "one", "min_tokens": 3}, "one one two one two"),
    (C, {"prompt": "a", "stop": " two", "include_stop_str_in_output": True}, "one two three"),
    (C, {"prompt": "a", "max_tokens": 5}, "one two 😀 three"),
    (C, {"prompt": "a", "max_tokens": 1}, "one two"),
    (C, {"prompt": "a", "echo": True}, "1 2 3"),
    (C, {"prompt": "a", "logprobs": 1}, "1 😀 3"),
    (C, {"prompt": "a", "logprobs": 0, "stop": "23"}, "1 2 23"),
    (C, {"prompt": "a"}, ""),
    (H, {"messages": CHAT}, "one 😀😀 two"),
    (H, {"messages": CHAT, "logprobs": True, "max_tokens": 6}, "one 😀😀 two"),
]


def says(ids: list[int]):
    """A model that goes on from wherever a request is, with scores where they are asked for."""

    def script(submit: Submit):
        assert list(submit.output_ids) == ids[: len(submit.output_ids)]
        scored = submit.sampling.logprobs is not None
        for index in range(len(submit.output_ids), len(ids)):
            stopped = ids[index] in submit.sampling.stop_token_ids
            full = index + 1 == submit.sampling.max_tokens
            yield Token(
                request_id=submit.request_id,
                index=index,
                token=ids[index],
                logprobs=TokenLogprobs(-0.5, ((ids[index], -0.5),)) if scored else None,
                finish_reason="stop" if stopped else "length" if full else None,
            )
            if stopped or full:
                return

    return script


async def ask(served, script, key, role, path, body):
    ours = {"request_id": "x-1", "created": "1700000000", "seed": "11", "journal": "1"}
    if role == "decode":
        ours |= {"peer": "10.0.0.1:8001", "peer-group": "p-0"}
    given = {f"x-pds-{name.replace('_', '-')}": value for name, value in (ours.items())}
    given["x-pds-role"] = role
    signed = signing.signed(key, "POST", path, given, int(time.time()) + 60)
    async with served(script, role=role) as s:
        answer = await s.client.post(path, json=body, headers=signed)
    assert answer.status_code == 200, answer.text
    return answer.content


def places(raw: bytes) -> list[int]:
    """The ends of all events, and a byte in the middle of each."""
    ends = [at for at in range(len(raw) + 1) if raw[:at].endswith(b"\n\n")]
    return [0, *ends, *(end - 9 for end in ends)]


@pytest.mark.parametrize("by", [("unified",), ("prefill", "decode")])
@pytest.mark.parametrize(("path", "body", "text"), REQUESTS)
async def test_wherever_it_breaks_off(served, tokenizer, key, path, body, text, by):
    script = says([*tokenizer.encode(text), EOS])
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    raw = b"".join([await ask(served, script, key, role, path, body) for role in by])
    uncut = EventReader()
    whole = uncut.feed(raw) + uncut.rest()
    resumed: dict[tuple[int, ...], bytes] = {}
    for at in places(raw):
        events = EventReader()
        given = events.feed(raw[:at])
        events.cut()
        assert events.journal.complete
        ids = tuple(events.journal.ids)
        if ids not in resumed:
            again = {**body, "pds_resume": {"output_ids": list(ids)}} if ids else body
            parts = [await ask(served, script, key, role, path, again) for role in by]
            resumed[ids] = b"".join(parts)
        given += events.feed(resumed[ids])
        assert given + events.rest() == whole, at
        assert events.journal.complete
    assert len(resumed) > 1 or len(tokenizer.encode(text)) < 2 or body.get("max_tokens") == 1


async def test_a_stream_breaks_off_once_more(served, tokenizer, key):
    """Each time after one event more."""
    script = says([*tokenizer.encode("one two 😀 three"), EOS])
    body = {"prompt": "a", "stream": True, "logprobs": 1}
    raw = await ask(served, script, key, "unified", C, body)
    uncut, events, given = EventReader(), EventReader(), b""
    whole = uncut.feed(raw) + uncut.rest()
    for _ in range(30):
        ids = list(events.journal.ids)
        again = {**body, "pds_resume": {"output_ids": ids}} if ids else body
        raw = await ask(served, script, key, "unified", C, again)
        if raw.count(b"\n\n") <= 3:
            break
        given += events.feed(raw[: raw.index(b"\n\n") + 2])
    given += events.feed(raw) + events.rest()
    assert given == whole


@pytest.mark.parametrize("journal", [True, False])
async def test_what_ends_a_stream_reaches_the_router_in_a_comment(served, key, journal):
    def failing(submit: Submit):
        yield Token(request_id=submit.request_id, index=0, token=300)
        yield Failed(request_id=submit.request_id, code="drained", message="late", status=503)

    body = {"prompt": "a", "stream": True, **({} if journal else {"n": 2})}
    events = EventReader()
    given = events.feed(await ask(served, failing, key, "unified", C, body))
    if journal:
        assert given.count(b"data:") == 1
        assert b"late" not in given
        assert events.failed is not None
        status, error = events.failed
        assert (status, b'"code":"drained"' in error) == (503, True)
    else:
        assert b"late" in given
        assert events.failed is None
        assert not events.journal.complete


async def test_replayed_tokens_are_not_in_the_journal_again(served, tokenizer, key):
    """Without their scores they release no event, yet the journal named them."""
    ids = [*tokenizer.encode("1 😀 3"), EOS]
    body = {"prompt": "a", "stream": True, "logprobs": 1, "pds_resume": {"output_ids": ids[:3]}}
    events = EventReader()
    events.journal.ids.extend(ids[:3])
    events.feed(await ask(served, says(ids), key, "unified", C, body))
    assert events.journal.complete
    assert list(events.journal.ids) == ids[:-1]


async def test_what_migrates_with_its_first_token_is_a_stream_already(served, key):
    """The router has the first token from P: an error in place of a stream would lose it."""

    def migrating(submit: Submit):
        assert (submit.resumable, submit.since) == (True, 1_700_000_000)
        yield Token(request_id=submit.request_id, index=0, token=300)
        yield Failed(request_id=submit.request_id, code="preempted", message="full", status=503)

    body = {"prompt": "a", "stream": True}
    events = EventReader()
    assert events.feed(await ask(served, migrating, key, "decode", C, body)) == b""
    assert events.failed is not None
    assert (events.failed[0], b'"code":"preempted"' in events.failed[1]) == (503, True)


@pytest.mark.parametrize("more", [{"n": 2, "stream": True}, {}])
async def test_what_cannot_be_resumed_says_so(served, key, more):
    seen = []

    def script(submit: Submit):
        seen.append(submit.resumable)
        yield Token(request_id=submit.request_id, index=0, token=300, finish_reason="stop")

    await ask(served, script, key, "unified", C, {"prompt": "a", **more})
    assert not any(seen)
