import asyncio

import pytest
from pds_engine.messages import Failed, Submit
from pds_engine.server import routes

C, H = "/v1/completions", "/v1/chat/completions"
SAY = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (C, {}, 400, "prompt"),
        (C, [], 400, None),
        (C, {"prompt": 5}, 400, "prompt"),
        (C, {"prompt": ""}, 400, "prompt"),
        (C, {"prompt": []}, 400, "prompt"),
        (C, {"prompt": [[]]}, 400, "prompt"),
        (C, {"prompt": ["a", 1]}, 400, "prompt"),
        (C, {"prompt": [99999]}, 400, "prompt"),
        (C, {"prompt": [-1]}, 400, "prompt"),
        (C, {"prompt": "a", "model": "other"}, 404, "model"),
        (C, {"prompt": "a", "model": 5}, 400, "model"),
        (C, {"prompt": "a", "max_tokens": -1}, 400, "max_tokens"),
        (C, {"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
        (C, {"prompt": "a", "max_tokens": "5"}, 400, "max_tokens"),
        (C, {"prompt": "a", "max_tokens": 5.5}, 400, "max_tokens"),
        (C, {"prompt": "a", "max_tokens": 10**6}, 400, "max_tokens"),
        (C, {"prompt": [7] * 5000}, 400, "prompt"),
        (C, {"prompt": "a" * 10**5}, 400, "prompt"),
        (C, {"prompt": "a", "min_tokens": 17}, 400, "min_tokens"),
        (C, {"prompt": "a", "temperature": -1}, 400, "temperature"),
        (C, {"prompt": "a", "temperature": 3}, 400, "temperature"),
        (C, {"prompt": "a", "temperature": True}, 400, "temperature"),
        (C, {"prompt": "a", "top_p": 1.5}, 400, "top_p"),
        (C, {"prompt": "a", "n": 0}, 400, "n"),
        (C, {"prompt": "a", "n": 129}, 400, "n"),
        (C, {"prompt": ["a"] * 999}, 400, "prompt"),
        (C, {"prompt": "a", "stream": "yes"}, 400, "stream"),
        (C, {"prompt": "a", "stop": ""}, 400, "stop"),
        (C, {"prompt": "a", "stop": ["a"] * 17}, 400, "stop"),
        (C, {"prompt": "a", "stop_token_ids": [4096]}, 400, "stop_token_ids"),
        (C, {"prompt": "a", "logit_bias": {"x": 1}}, 400, "logit_bias"),
        (C, {"prompt": "a", "logit_bias": {"1": 101}}, 400, "logit_bias"),
        (C, {"prompt": "a", "logit_bias": {"9999": 1}}, 400, "logit_bias"),
        (C, {"prompt": "a", "logprobs": 21}, 400, "logprobs"),
        (C, {"prompt": "a", "prompt_logprobs": 21}, 400, "prompt_logprobs"),
        (C, {"prompt": "a", "prompt_logprobs": 1, "stream": True}, 400, "prompt_logprobs"),
        (C, {"prompt": "a", "best_of": 2}, 400, "best_of"),
        (C, {"prompt": "a", "suffix": "b"}, 400, "suffix"),
        (C, {"prompt": "a", "seed": 2**63}, 400, "seed"),
        (C, {"prompt": "a", "pds_resume": {"output_ids": [1]}}, 400, "pds_resume"),
        (H, {}, 400, "messages"),
        (H, {"messages": []}, 400, "messages"),
        (H, {"messages": [{"content": "a"}]}, 400, "messages[0].role"),
        (H, {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
        (
            H,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "messages[0].content",
        ),
        (H, {"messages": SAY, "top_logprobs": 2}, 400, "top_logprobs"),
        (H, {"messages": SAY, "logprobs": 2}, 400, "logprobs"),
        (
            H,
            {"messages": SAY, "response_format": {"type": "json_object"}},
            400,
            "response_format.type",
        ),
        (H, {"messages": SAY, "tool_choice": "required"}, 400, "tool_choice"),
        ("/tokenize", {"prompt": 1}, 400, "prompt"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens[0]"),
        ("/detokenize", {"tokens": [4096]}, 400, "tokens"),
        ("/nowhere", {}, 404, None),
        ("/v1/models", {}, 405, None),
    ],
)
async def test_bad_fields(served, script, path, body, status, param):
    async with served(script([300])) as s:
        answer = await s.client.post(path, json=body)
        assert s.scheduler.of(Submit) == []
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert error["message"] and error["type"] == "invalid_request_error" and error["code"]


@pytest.mark.parametrize("prompt", [[99, 100], "hello"])
async def test_ids_that_the_model_has_no_row_for(served, script, tokenizer, monkeypatch, prompt):
    monkeypatch.setattr(tokenizer, "vocabulary", 100)
    async with served(script([30])) as s:
        answer = await s.client.post(C, json={"prompt": prompt})
        assert s.scheduler.of(Submit) == []
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")
    assert "not below the vocabulary's 100" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"nonsense", b'{"prompt": NaN}', b'{"prompt": "\xff"}', b"[" * 10**5, b'"\\ud800"'],
)
async def test_not_json(served, script, data):
    async with served(script([300])) as s:
        answer = await s.client.post(C, content=data)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


async def test_a_body_above_the_bound(served, script):
    async with served(script([300]), http={"max_body_bytes": 2048}) as s:
        answer = await s.client.post(C, json={"prompt": "a" * 4096})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


async def test_a_body_that_does_not_come(served, script, monkeypatch):
    monkeypatch.setattr(routes, "BODY_SECONDS", 0.05)

    async def slowly():
        yield b"{"
        await asyncio.Event().wait()

    async with served(script([300])) as s:
        answer = await s.client.post(C, content=slowly())
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "body_timeout"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_scheduler_s_refusal_is_the_client_s_status(served, stream):
    def refuse(submit: Submit):
        name = submit.request_id
        yield Failed(request_id=name, code="overloaded", message="full", status=429, retry_after=2)

    async with served(refuse) as s:
        answer = await s.client.post(C, json={"prompt": "a", "stream": stream})
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "2")
    assert answer.json()["error"] == {
        "message": "full",
        "type": "rate_limit_error",
        "param": None,
        "code": "overloaded",
    }
