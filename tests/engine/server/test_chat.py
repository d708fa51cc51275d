import pytest
from pds_engine.messages import Submit

EOS = 1
ASK = {"messages": [{"role": "user", "content": "hi"}]}


async def test_a_whole_chat(served, script, tokenizer):
    async with served(script([*tokenizer.encode("Hello!"), EOS])) as s:
        answer = (await s.client.post("/v1/chat/completions", json=ASK)).json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Hello!",
        "refusal": None,
    }
    (submit,) = s.scheduler.of(Submit)
    assert tokenizer.decode(submit.prompt_ids, skip_special=False) == (
        "<|user|>hi<|end|><|assistant|>"
    )
    assert submit.sampling.max_tokens == 4096 - len(submit.prompt_ids)


async def test_a_stream_names_the_role_once(served, script, tokenizer, read_events):
    async with served(script([*tokenizer.encode("1 2"), EOS])) as s:
        answer = await s.client.post("/v1/chat/completions", json={**ASK, "stream": True})
    *chunks, end = read_events(answer.text)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": "1"},
        {"content": " "},
        {"content": "2"},
        {},
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert end == "[DONE]"


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
            "<|user|>hi<|end|><|assistant|>",
        ),
        (
            {"messages": [{"role": "developer", "content": "d"}], "add_generation_prompt": False},
            "<|system|>d<|end|>",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "Hel"},
                ],
                "continue_final_message": True,
            },
            "<|user|>hi<|end|><|assistant|>Hel",
        ),
        (
            {"messages": [{"role": "assistant", "content": None}, {"role": "user", "content": ""}]},
            "<|assistant|><|end|><|user|><|end|><|assistant|>",
        ),
    ],
)
async def test_messages_become_prompts(served, script, tokenizer, body, prompt):
    async with served(script([EOS])) as s:
        answer = await s.client.post("/v1/chat/completions", json={**body, "max_tokens": 1})
        tokens = (await s.client.post("/tokenize", json=body)).json()["tokens"]
    assert answer.status_code == 200
    (submit,) = s.scheduler.of(Submit)
    assert tokenizer.decode(submit.prompt_ids, skip_special=False) == prompt
    assert tokens == list(submit.prompt_ids)


async def test_max_completion_tokens_is_max_tokens(served, script, tokenizer):
    async with served(script(tokenizer.encode("1 2 3 4"))) as s:
        body = {**ASK, "max_completion_tokens": 3}
        answer = (await s.client.post("/v1/chat/completions", json=body)).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 3
