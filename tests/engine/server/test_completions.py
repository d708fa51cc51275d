import time

import pytest
from pds_engine.messages import Cancel, Submit, Token, TokenLogprobs

EOS = 1


async def test_a_whole_completion(served, script, tokenizer):
    ids = [*tokenizer.encode(" 4 😀"), EOS]
    async with served(script(ids, cached=2)) as s:
        body = {"model": "tiny", "prompt": "2 + 2 =", "max_tokens": 64, "seed": 7, "temperature": 0}
        answer = (await s.client.post("/v1/completions", json=body)).json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["choices"] == [
        {
            "index": 0,
            "text": " 4 😀",
            "logprobs": None,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ]
    prompt = tokenizer.encode("2 + 2 =")
    assert answer["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": len(ids),
        "total_tokens": len(prompt) + len(ids),
        "prompt_tokens_details": {"cached_tokens": 2},
    }
    (submit,) = s.scheduler.of(Submit)
    assert submit.prompt_ids == tuple(prompt)
    assert (submit.seed, submit.sampling.max_tokens, submit.sampling.temperature) == (7, 64, 0)
    assert submit.sampling.stop_token_ids == (EOS,)
    assert s.scheduler.of(Cancel) == []


async def test_a_request_timeout_becomes_its_deadline(served, script):
    async with served(script([EOS]), http={"request_timeout": 30}) as s:
        begun = time.time()
        await s.client.post("/v1/completions", json={"prompt": "a"})
    (submit,) = s.scheduler.of(Submit)
    assert begun + 30 <= submit.deadline <= time.time() + 30


async def test_a_stream_says_the_same(served, script, tokenizer, read_events):
    ids = tokenizer.encode("one, two, three")
    async with served(script(ids)) as s:
        body = {"prompt": "count", "max_tokens": len(ids)}
        whole = (await s.client.post("/v1/completions", json=body)).json()
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        answer = await s.client.post("/v1/completions", json=body)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    *chunks, usage, end = read_events(answer.text)
    assert end == "[DONE]"
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert all(chunk["usage"] is None for chunk in chunks)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]


async def test_without_include_usage_a_stream_has_none(served, script, read_events):
    async with served(script([300])) as s:
        answer = await s.client.post("/v1/completions", json={"prompt": "a", "stream": True})
    assert all("usage" not in chunk for chunk in read_events(answer.text)[:-1])


async def test_a_stop_string_ends_the_text_and_the_scheduler_s_work(served, tokenizer):
    ids = tokenizer.encode("one two three")

    def endless(submit: Submit):
        return [
            Token(request_id=submit.request_id, index=i, token=ids[i % len(ids)]) for i in range(99)
        ]

    async with served(endless) as s:
        body = {"prompt": "a", "max_tokens": 99, "stop": ["thr"]}
        answer = (await s.client.post("/v1/completions", json=body)).json()
        (cancel,) = await s.scheduler.until(Cancel)
    assert answer["choices"][0]["text"] == "one two "
    assert answer["choices"][0]["stop_reason"] == "thr"
    assert answer["usage"]["completion_tokens"] <= len(ids)
    assert cancel.request_id == answer["id"]


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [("a", [1]), (["a", "a b"], [1, 3]), ([7, 8, 9], [3]), ([[7], [8, 9]], [1, 2])],
)
async def test_prompts_of_all_shapes_with_n(served, script, prompt, lengths):
    async with served(script([300, 301, EOS])) as s:
        body = {"prompt": prompt, "n": 2}
        answer = (await s.client.post("/v1/completions", json=body)).json()
    submits = s.scheduler.of(Submit)
    assert [len(submit.prompt_ids) for submit in submits] == [n for n in lengths for _ in range(2)]
    assert [submit.sampling.choice for submit in submits] == [0, 1] * len(lengths)
    assert len({submit.seed for submit in submits}) == 1
    names = [f"{answer['id']}#{i}" for i in range(2 * len(lengths))]
    assert [submit.request_id for submit in submits] == names
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(lengths)))
    assert answer["usage"]["prompt_tokens"] == sum(lengths)
    assert answer["usage"]["completion_tokens"] == 6 * len(lengths)


@pytest.mark.parametrize("stream", [False, True])
async def test_echo(served, script, tokenizer, read_events, stream):
    async with served(script(tokenizer.encode(" two"))) as s:
        body = {"prompt": "one", "echo": True, "stream": stream}
        answer = await s.client.post("/v1/completions", json=body)
    bodies = read_events(answer.text)[:-1] if stream else [answer.json()]
    assert "".join(b["choices"][0]["text"] for b in bodies) == "one two"


async def test_logprobs(served, tokenizer):
    (id,) = tokenizer.encode("7")
    (other,) = tokenizer.encode("8")
    scores = TokenLogprobs(-0.25, ((id, -0.25), (other, float("-inf"))))

    def scored(submit: Submit):
        name = submit.request_id
        yield Token(request_id=name, index=0, token=id, logprobs=scores)
        yield Token(request_id=name, index=1, token=id, logprobs=scores, finish_reason="length")

    async with served(scored) as s:
        body = {"prompt": "a", "logprobs": 2, "max_tokens": 2}
        text = (await s.client.post("/v1/completions", json=body)).json()
        body = {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2}
        chat = (await s.client.post("/v1/chat/completions", json=body)).json()
    assert text["choices"][0]["logprobs"] == {
        "tokens": ["7", "7"],
        "token_logprobs": [-0.25, -0.25],
        "top_logprobs": [{"7": -0.25, "8": -9999.0}] * 2,
        "text_offset": [0, 1],
    }
    top = [
        {"token": "7", "logprob": -0.25, "bytes": [55]},
        {"token": "8", "logprob": -9999.0, "bytes": [56]},
    ]
    assert chat["choices"][0]["logprobs"] == {"content": [{**top[0], "top_logprobs": top}] * 2}
    assert [submit.sampling.logprobs for submit in s.scheduler.of(Submit)] == [2, 2]


def scored_prompt(id: int, other: int):
    """A script: each prompt token but the first scores -1, the likeliest one -0.5."""

    def script(submit: Submit):
        one = TokenLogprobs(-1.0, ((other, -0.5), (id, -1.0)))
        yield Token(
            request_id=submit.request_id,
            index=0,
            token=other,
            logprobs=TokenLogprobs(-0.25, ((other, -0.25), (id, -2.0))),
            prompt_logprobs=(one,) * (len(submit.prompt_ids) - 1),
            finish_reason="length",
        )

    return script


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_with_logprobs_begins_with_the_prompt_s(served, tokenizer, read_events, stream):
    (seven,), (eight,) = tokenizer.encode("7"), tokenizer.encode("8")
    async with served(scored_prompt(seven, eight)) as s:
        body = {"prompt": [seven, seven, seven], "echo": True, "logprobs": 1, "max_tokens": 1}
        answer = await s.client.post("/v1/completions", json={**body, "stream": stream})
    chunks = [body["choices"][0] for body in read_events(answer.text)[:-1]] if stream else []
    first = chunks[0] if stream else answer.json()["choices"][0]
    assert first["text"] == "7778"
    assert first["logprobs"] == {
        "tokens": ["7", "7", "7", "8"],
        "token_logprobs": [None, -1.0, -1.0, -0.25],
        "top_logprobs": [None, {"8": -0.5}, {"8": -0.5}, {"8": -0.25, "7": -2.0}],
        "text_offset": [0, 1, 2, 3],
    }
    assert "prompt_logprobs" not in first
    (submit,) = s.scheduler.of(Submit)
    assert (submit.sampling.logprobs, submit.sampling.prompt_logprobs) == (1, 1)
    assert all(choice["logprobs"] is None for choice in chunks[1:])


async def test_prompt_logprobs(served, tokenizer):
    (seven,), (eight,) = tokenizer.encode("7"), tokenizer.encode("8")
    async with served(scored_prompt(seven, eight)) as s:
        body = {"prompt": [seven, seven], "prompt_logprobs": 1, "max_tokens": 1}
        text = (await s.client.post("/v1/completions", json=body)).json()["choices"][0]
        alone = (await s.client.post("/v1/completions", json={**body, "prompt": [7]})).json()
        messages = [{"role": "user", "content": "a"}]
        chat = await s.client.post(
            "/v1/chat/completions", json={"messages": messages, "prompt_logprobs": 0}
        )
        none = await s.client.post(
            "/v1/completions", json={**body, "prompt_logprobs": 1, "stream": True}
        )
    own = {"logprob": -1.0, "rank": None, "decoded_token": "7"}
    likeliest = {"logprob": -0.5, "rank": 1, "decoded_token": "8"}
    assert text["prompt_logprobs"] == [None, {str(seven): own, str(eight): likeliest}]
    assert alone["choices"][0]["prompt_logprobs"] == [None]
    first, *others = chat.json()["prompt_logprobs"]
    assert first is None
    assert len(others) == len(s.scheduler.of(Submit)[2].prompt_ids) - 1
    assert all(len(entry) == 1 for entry in others)
    assert none.status_code == 400
    assert none.json()["error"]["param"] == "prompt_logprobs"


async def test_sampling_is_passed_on(served, script):
    body = {
        "prompt": "a",
        "top_p": 0,
        "top_k": -1,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.5,
        "logit_bias": {"5": 3, "7": -100},
        "stop_token_ids": [9],
        "min_tokens": 2,
        "ignore_eos": True,
        "max_tokens": 5,
        "user": "u",
        "an_unknown_field": {},
        "seed": -1,
        "n": None,
    }
    async with served(script([300, 301])) as s:
        assert (await s.client.post("/v1/completions", json=body)).status_code == 200
    (submit,) = s.scheduler.of(Submit)
    sampling = submit.sampling
    assert (sampling.top_p, sampling.top_k, sampling.min_p) == (1e-6, 0, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert (sampling.repetition_penalty, sampling.logit_bias) == (1.5, {5: 3.0, 7: -100.0})
    assert (sampling.stop_token_ids, sampling.min_tokens) == ((9,), 2)
    assert submit.seed == 2**63 - 1
