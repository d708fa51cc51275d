"""The API server's own refusals, byte for byte."""

import asyncio

import pytest
from pds_engine.messages import Failed, Submit, Token
from pds_engine.server import routes

C = "/v1/completions"


def body(message, code, kind="invalid_request_error", param="null"):
    return f'{{"error":{{"message":"{message}","type":"{kind}","param":{param},"code":"{code}"}}}}'


ANSWERS = {
    "no such path": (
        ("GET", "/v2", b""),
        (404, {}, body("Not Found", "not_found")),
    ),
    "another method": (
        ("GET", C, b""),
        (405, {"allow": "POST"}, body("Method Not Allowed", "method_not_allowed")),
    ),
    "no such model": (
        ("GET", "/v1/models/other", b""),
        (404, {}, body("the model 'other' is not served here (this engine serves 'tiny')",
                       "model_not_found", param='"model"')),
    ),
    "a large body": (
        ("POST", C, b"x" * 3000),
        (413, {"connection": "close"}, body("the body is above 2048 bytes", "body_too_large")),
    ),
    "a huge body": (
        ("POST", C, b"x" * 300_000),
        (413, {"connection": "close"}, body("the body is above 2048 bytes", "body_too_large")),
    ),
    "unsigned": (
        ("POST", "/pds/drain", b"{}"),
        (403, {}, body("this call is for the router and the operator, who sign it", "forbidden",
                       "permission_error")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
async def test_what_it_refuses(served, script, name):
    (method, path, data), expected = ANSWERS[name]
    async with served(script([300]), http={"max_body_bytes": 2048}) as s:
        answer = await s.client.request(method, path, content=data)
    assert seen(answer) == expected
    assert answer.headers["content-type"] == "application/json"


async def test_a_body_that_does_not_come(served, script, monkeypatch):
    monkeypatch.setattr(routes, "BODY_SECONDS", 0.05)

    async def slowly():
        yield b"{"
        await asyncio.Event().wait()

    async with served(script([300])) as s:
        answer = await s.client.post(C, content=slowly())
    late = body("the body did not come within 0.05 s", "body_timeout")
    assert seen(answer) == (408, {"connection": "close"}, late)


async def test_a_fault_of_its_own(served):
    def breaks(submit: Submit):
        yield Token(request_id=submit.request_id, index=5, token=300)  # the first has index 0

    async with served(breaks) as s:
        answer = await s.client.post(C, json={"prompt": "a"})
    status, headers, content = seen(answer)
    assert (status, headers) == (503, {"retry-after": "1"})
    assert '"type":"server_error","param":null,"code":"protocol_error"' in content


async def test_a_deadline_that_passed(served, read_events):
    def late(submit: Submit):
        name = submit.request_id
        if submit.sampling.max_tokens > 1:
            yield Token(request_id=name, index=0, token=300)
        yield Failed(request_id=name, code="deadline_passed", message="late", status=504)

    content = body("late", "deadline_passed", "timeout_error")
    async with served(late) as s:
        for stream in (False, True):
            asked = {"prompt": "a", "max_tokens": 1, "stream": stream}
            assert seen(await s.client.post(C, json=asked)) == (504, {}, content)
        begun = await s.client.post(C, json={"prompt": "a", "stream": True})
    assert begun.status_code == 200
    assert begun.text.endswith(f"data: {content}\n\n")
    assert len(read_events(begun.text)) == 2  # and no [DONE]


def seen(answer):
    """Status, headers but for the usual ones, and text."""
    headers = dict(answer.headers)
    for usual in ("content-length", "content-type"):
        del headers[usual]
    return answer.status_code, headers, answer.text
