"""Bodies of 8 MB are refused before anything is made of them, and the loop stays with others."""

import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pds_engine.errors import InvalidRequest, RequestError, TooLong
from pds_engine.messages import Submit
from pds_engine.server import large, protocol, scan
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
LIMITS = large.PromptLimits(tokens=4096, characters=4096 * 13, prompts=320)


@pytest.mark.parametrize("name", BOMBS)
def test_a_large_body_is_refused_before_it_is_parsed(monkeypatch, name):
    path, start, piece, end, param = BOMBS[name]
    given_to_pydantic: list[int] = []
    parse = protocol.parse

    def counted(kind: type[Body], data: bytes) -> Body:
        given_to_pydantic.append(len(data))
        return parse(kind, data)

    monkeypatch.setattr(protocol, "parse", counted)
    with pytest.raises(RequestError) as caught:
        large.examined(large.question(FORMS[path], LIMITS), filled(start, piece, end))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert len(caught.value.message) < 300  # nothing of the body is repeated
    assert all(size <= large.MAX_STOPS + large.MAX_FIELD for size in given_to_pydantic)


async def test_the_server_has_large_bodies_examined_elsewhere(served, script, monkeypatch):
    """The server's own process reads no byte of a body that is refused."""

    def here(*_: object) -> NoReturn:
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

    def counted(kind: type[Body], data: bytes, limits: large.PromptLimits) -> Body:
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


SAID = b'"messages":[{"role":"user","content":"a"}]'
PROMPTS = (
    b'"a"', b'""', b"null", b"5", b"{}", b"[]", b"[[]]", b"[1]", b"[1.0]", b"[true]", b"[-1]",
    b"[2147483648]", b'["a",1]', b'[1,"a"]', b'[[1],"a"]', b"[[1],2]", b'["a",["b"]]', b"[null]",
    b'["a","b"]', b"[[1],[2]]", b"[1,]", b'["a"', b"[01]", b'"\\ud800"', b'"\xff"', b'"\\x"',
    b'[ "a" , "b" ]', b"[ [ 1 ] ,[2] ]", b"-0", b'"a\nb"', b"[" * 100_000, b'{"a":1}',
)  # fmt: skip
OTHERS = (
    b'"n":0', b'"n":1.0', b'"n":true', b'"n":null', b'"n":"1"', b'"seed":-5', b'"seed":1e3',
    b'"top_k":-1', b'"top_k":18446744073709551616', b'"temperature":1e400',
    b'"stop":["a","b"]', b'"stop":[1]', b'"stop":{}', b'"stop_token_ids":[1.0]',
    b'"logit_bias":{"1":5}', b'"logit_bias":[]', b'"prompt":"b"', b'"pr\\u006fmpt":["b"]',
    b'"guided\\u005fjson":{}', b'"response_format":{"type":"json_object"}', b'"user":"\xff"',
    b'"unknown":"\xff"', b'"\xff":1', b'"unknown":01',
    b'"unknown":"NaN Infinity"', b'"unknown":' + b"9" * 257, b'"unknown":"' + b"9" * 257 + b'"',
    b'"user":"' + b"9" * 300 + b'"', b'"pds_resume":{"output_ids":[1]}', b'"pds_resume":{}',
    b'"pds_resume":{"output_ids":[1.0]}', b'"pds_resume":[]', b'"pds_resume":{"x":1}',
)  # fmt: skip
TALKS = (
    b'"messages":[]', b'"messages":null', b'"messages":5', b'"messages":{}', b'"messages":[5]',
    b'"messages":[{"content":"a"}]', b'"messages":[{"role":"u"},{"role":""}]',
    b'"messages":[{"role":"u","content":5}]', b'"messages":[{"role":"u","x":[1,{"y":2}]}]',
    b'"messages":[{"role":"u","content":[{"type":"image_url"}]}]',
    b'"messages":[{"role":"u","content":[{"type":"text","text":"{[,"}],"name":"b"},{"role":"a"}]',
    SAID + b',"tools":[]', SAID + b',"tools":[5]', SAID + b',"tools":{}', SAID + b',"tools":[{},5]',
    SAID + b',"tools":[{"a":1e400}]', SAID + b',"tools":null',
    SAID + b',"tools":[{"a":' + b"9" * 300 + b"}]", SAID + b',"tools":[{"a":-0.0,"b":1e2}]',
    SAID + b',"tools":[{"a":' + b"[" * 150 + b"]" * 150 + b"}]",
    SAID + b',"tools":[{"a":' + b"[" * 300 + b"]" * 300 + b"}]",
    SAID + b',"chat_template_kwargs":{"a":[1,{"b":null}]}', SAID + b',"chat_template_kwargs":[]',
    SAID + b',"chat_template_kwargs":{"a":' + b"[" * 300 + b"]" * 300 + b"}",
)  # fmt: skip
BODIES: list[tuple[large.Form, bytes]] = [
    *(("completion", b'{"prompt":%b}' % value) for value in PROMPTS),
    *(("tokenize", b'{"prompt":%b}' % value) for value in PROMPTS),
    *(("detokenize", b'{"tokens":%b}' % value) for value in PROMPTS),
    *(("completion", b'{"prompt":"a",%b}' % field) for field in OTHERS),
    *(("chat", b"{%b,%b}" % (SAID, field)) for field in OTHERS if b"prompt" not in field),
    *(("chat", b"{%b}" % fields) for fields in TALKS),
    *(("tokenize", b"{%b}" % fields) for fields in TALKS),
    ("completion", b"{}"), ("chat", b"{}"), ("tokenize", b"{}"), ("detokenize", b"{}"),
    ("tokenize", b'{"prompt":"a","messages":null}'), ("tokenize", b'{"messages":"x"}'),
    ("tokenize", b'{"prompt":"a",%b}' % SAID), ("tokenize", b'{"prompt":"a","messages": null }'),
]  # fmt: skip
PADS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "space within": lambda body, pad: body[:-1] + b" " * len(pad) + b"}",
    "space before": lambda body, pad: b" " * len(pad) + body,
    "an unknown field": lambda body, pad: body[:-1] + (
        b',"pad":"%b"}' if b":" in body else b'"pad":"%b"}'
    ) % pad,
}  # fmt: skip


def probe_answer(form: large.Form, data: bytes) -> tuple[str, str | None]:
    """The result for a body: what it is read as, or the field that it is refused for."""
    try:
        read = large.parse(large._kind(form, data), data, LIMITS)
    except RequestError as error:
        return refused(error)
    return repr(read), None


def refused(error: RequestError) -> tuple[str, str | None]:
    return f"{error.status}", re.split(r"[.\[]", error.param or "")[0] or None


@pytest.mark.parametrize("where", PADS)
def test_a_body_is_read_in_the_same_way_at_every_size(where: str):
    unlike = []
    for form, body in BODIES:
        small = probe_answer(form, body)
        larger = PADS[where](body, b"x" * large.FROM)
        seen = [probe_answer(form, larger)]
        try:
            kept = large.examined(large.question(form, LIMITS), larger)
            seen.append(probe_answer(form, kept))
        except RequestError as error:
            seen.append(refused(error))
        if any(each != small for each in seen):
            unlike.append((form, body[:80], small, seen))
    assert unlike == []


@pytest.mark.parametrize("data", [b"[%b]", b"{%b", b'{"prompt": "%b', b'"%b"', b"%b"])
def test_no_object(data: bytes):
    with pytest.raises(InvalidRequest, match="the body cannot be read"):
        large.parse(protocol.CompletionRequest, data.replace(b"%b", b"1," * large.FROM), LIMITS)


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
        patch.setattr(scan, "SLICE", slice_)
        assert scan.values(json.dumps(value).encode(), b"{") == count(value)
