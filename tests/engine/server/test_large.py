"""Bodies of 8 MB are refused before anything is made of them, and the loop stays with others."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pds_engine.errors import InvalidRequest, RequestError, TooLong
from pds_engine.messages import Submit
from pds_engine.server import large, protocol
from pds_engine.server.strict import Body

MB8 = (8 << 20) - 1024
C, H, T, D = "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"


def filled(start: bytes, piece: bytes, end: bytes) -> bytes:
    """A body of 8 MB: `piece` as often as it fits between `start` and `end`."""
    return start + piece * ((MB8 - len(start) - len(end)) // len(piece)) + end


BOMBS = {
    "a text": (C, b'{"prompt":"', b"a b, ", b'"}', "prompt"),
    "escapes": (C, b'{"prompt":"', rb"\n", b'"}', "prompt"),
    "texts": (C, b'{"prompt":[', b'"a",', b'"a"]}', "prompt"),
    "ids": (C, b'{"prompt":[', b"7,", b"7]}", "prompt"),
    "lists of ids": (C, b'{"prompt":[', b"[7],", b"[7]]}", "prompt"),
    "a list of many ids": (C, b'{"prompt":[[7],[', b"7,", b"7]]}", "prompt"),
    "a nested seed": (C, b'{"prompt":"a","seed":[', b"[],", b"[]]}", "seed"),
    "stop strings": (C, b'{"prompt":"a","stop":[', b'"a",', b'"a"]}', "stop"),
    "resumed ids": (C, b'{"prompt":"a","pds_resume":{"output_ids":[', b"7,", b"7]}}", "pds_resume"),
    "messages": (H, b'{"messages":[', b'{"role":"u"},', b'{"role":"u"}]}', "messages"),
    "a message": (H, b'{"messages":[{"role":"u","content":"', b"a, {", b'"}]}', "messages"),
    "parts": (
        H,
        b'{"messages":[{"role":"u","content":[',
        b'{"type":"text","text":""},',
        b'{"type":"text","text":""}]}]}',
        "messages",
    ),
    "tools": (H, b'{"messages":[{"role":"u"}],"tools":[', b"{},", b"{}]}", "tools"),
    "kwargs": (
        H,
        b'{"messages":[{"role":"u"}],"chat_template_kwargs":{"a":[',
        b"[],",
        b"[]]}}",
        "chat_template_kwargs",
    ),
    "a text to count": (T, b'{"prompt":"', b"a b, ", b'"}', "prompt"),
    "messages to count": (T, b'{"messages":[', b'{"role":"u"},', b'{"role":"u"}]}', "messages"),
    "ids to spell": (D, b'{"tokens":[', b"7,", b"7]}", "tokens"),
}


FORMS: dict[str, large.Form] = {C: "completion", H: "chat", T: "tokenize", D: "detokenize"}
LIMITS = large.Limits(tokens=4096, characters=4096 * 13, prompts=320)


@pytest.mark.parametrize("name", BOMBS)
def test_a_large_body_is_refused_before_it_is_parsed(monkeypatch, name):
    path, start, piece, end, param = BOMBS[name]
    given_to_pydantic: list[int] = []
    parse = protocol.parse

    def counted(kind: type[Any], data: bytes) -> Any:
        given_to_pydantic.append(len(data))
        return parse(kind, data)

    monkeypatch.setattr(protocol, "parse", counted)
    with pytest.raises(RequestError) as caught:
        large.examined(large.question(FORMS[path], LIMITS), filled(start, piece, end))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert len(caught.value.message) < 300  # nothing of the body is repeated
    assert all(size <= large.MAX_STOPS + large.MAX_FIELD for size in given_to_pydantic)


async def test_the_server_has_large_bodies_examined_elsewhere(served, script, monkeypatch):
    """Not a byte of a body that is refused is looked at in the server's own process."""

    def here(*_: Any) -> Any:
        raise AssertionError("this process reads a large body")

    monkeypatch.setattr(large, "_fields", here)
    async with served(script([300])) as s:
        for path, start, piece, end, param in {bomb[0]: bomb for bomb in BOMBS.values()}.values():
            answer = await s.client.post(path, content=filled(start, piece, end))
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, param)
        assert s.scheduler.of(Submit) == []


async def test_of_a_large_body_only_what_somebody_reads_comes_back(served, script, monkeypatch):
    seen: list[int] = []
    parse = large.parse

    def counted(kind: type[Any], data: bytes, limits: large.Limits) -> Any:
        seen.append(len(data))
        return parse(kind, data, limits)

    monkeypatch.setattr(large, "parse", counted)
    async with served(script([300])) as s:
        unknown = filled(b'{"prompt":"a","max_tokens":1,"unknown":[', b"[],", b"[]]}")
        assert (await s.client.post(C, content=unknown)).json()["usage"]["completion_tokens"] == 1
        chat = filled(b'{"messages":[{"role":"user","content":"a"}],"x":[', b"[],", b"[]]}")
        assert (await s.client.post(H, content=chat)).status_code == 200
        assert (await s.client.post(T, content=chat)).json()["count"] > 0
    assert seen and max(seen) < 100


async def test_other_threads_run_while_a_text_is_tokenized(served, script, turns):
    """`Tokenizer.encode` holds the interpreter's lock to its end: nobody counts meanwhile."""
    async with served(script([300]), max_model_len=200_000) as s, turns() as counted:
        begun = counted.loop, counted.thread
        text = "hello there, " * 40_000
        answer = await s.client.post(T, json={"prompt": text})
        loop, thread = counted.loop - begun[0], counted.thread - begun[1]
    assert answer.status_code == 200, answer.text[:200]
    assert loop > 100 and thread > 50


async def test_a_text_of_the_whole_context_is_counted(served, script, tokenizer):
    async with served(script([300])) as s:
        text = "a " * 2000
        answer = (await s.client.post(T, json={"prompt": text, "return_token_strs": True})).json()
        longer = await s.client.post(T, json={"prompt": "a 1 " * 4000})
    assert answer["tokens"] == tokenizer.encode(text) and answer["count"] <= 4096
    assert len(answer["token_strs"]) == answer["count"]
    assert longer.json()["error"]["code"] == "context_length_exceeded"


PADDED = {"unknown": "x" * large.FROM}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (protocol.CompletionRequest, {"prompt": "é😀\n", "n": 2, "seed": 5}),
        (protocol.CompletionRequest, {"prompt": ["a,[", 'b"\\']}),
        (protocol.CompletionRequest, {"prompt": [1, 2, 3], "stop": ["a", "b"]}),
        (protocol.CompletionRequest, {"prompt": [[1], [2, 3]], "temperature": None}),
        (protocol.CompletionRequest, {"prompt": []}),
        (
            protocol.ChatRequest,
            {
                "messages": [
                    {"role": "user", "content": "a", "name": "b"},
                    {"role": "user", "content": [{"type": "text", "text": "{[,"}]},
                ],
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "chat_template_kwargs": {"a": [1, {"b": None}]},
            },
        ),
        (protocol.ChatRequest, {"messages": [{"role": "user"}], "tools": None}),
        (protocol.DetokenizeRequest, {"tokens": [1, 2]}),
    ],
)
def test_a_large_body_reads_as_a_small_one(kind: type[Body], body: dict[str, Any]):
    small = protocol.parse(kind, json.dumps(body).encode())
    for options in ({}, {"ensure_ascii": False}, {"indent": 3}):
        data = json.dumps(body | PADDED, **options).encode()
        assert large.parse(kind, data, LIMITS) == small


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        (protocol.CompletionRequest, {}, "prompt"),
        (protocol.CompletionRequest, {"prompt": 5}, "prompt"),
        (protocol.CompletionRequest, {"prompt": [1, "a"]}, "prompt"),
        (protocol.CompletionRequest, {"prompt": ["a", 1]}, "prompt"),
        (protocol.CompletionRequest, {"prompt": [-1]}, "prompt"),
        (protocol.CompletionRequest, {"prompt": [2**31]}, "prompt"),
        (protocol.CompletionRequest, {"prompt": "a", "n": 0}, "n"),
        (protocol.ChatRequest, {"messages": []}, "messages"),
        (protocol.ChatRequest, {"messages": 5}, "messages"),
        (protocol.ChatRequest, {"messages": [{"content": "a"}]}, "messages[0].role"),
        (protocol.ChatRequest, {"messages": [{"role": "u", "content": 5}]}, "messages[0].content"),
        (protocol.ChatRequest, {"messages": [{"role": "u"}], "tools": [5]}, "tools"),
    ],
)
def test_wrong_fields_of_large_bodies_are_named(kind: type[Body], body: Any, param: str):
    with pytest.raises(InvalidRequest) as caught:
        large.parse(kind, json.dumps(body | PADDED).encode(), LIMITS)
    assert caught.value.param == param


@pytest.mark.parametrize("data", [b"[%b]", b"{%b", b'{"prompt": "%b', b'"%b"', b"%b"])
def test_no_object(data: bytes):
    with pytest.raises(InvalidRequest, match="the body cannot be read"):
        large.parse(protocol.CompletionRequest, data.replace(b"%b", b"1" * large.FROM), LIMITS)


def test_a_prompt_of_too_many_ids_is_too_long():
    data = json.dumps({"prompt": [7] * 10_000}).encode()
    with pytest.raises(TooLong, match="10000 token ids exceed the context of 4096 tokens"):
        large.parse(protocol.CompletionRequest, data, LIMITS)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('a"\\,[{é'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('a"\\,[{'), inner),
)


@settings(max_examples=80)
@given(_json, st.integers(1, 9))
def test_values_are_counted_outside_of_strings_alone(value: Any, slice_: int):
    def count(one: Any) -> int:
        """Objects within `one`, itself included."""
        if isinstance(one, dict):
            return 1 + sum(map(count, one.values()))
        return sum(map(count, one)) if isinstance(one, list) else 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large, "FROM", slice_)
        assert large._values(json.dumps(value).encode(), b"{") == count(value)
