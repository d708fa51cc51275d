"""What the router reads of a body: little, at once, and as the engine reads it."""

import json
import time

import pytest
from pds_engine.config import EngineConfig
from pds_engine.errors import RequestError
from pds_engine.router.attempt import internal_headers
from pds_engine.router.call import DEFAULT_OUTPUT, LONGEST, STREAMED, read_call
from pds_engine.router.peek import peek
from pds_engine.server import headers, job, protocol
from pds_engine.server.headers import InternalHeaders

C, H = "/v1/completions", "/v1/chat/completions"


def call(body, path=C, policy="leastTokens", **more):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    peeked = peek(data, STREAMED[path], policy)
    return read_call(path, [], data, peeked, now=0.0, policy=policy, **more)


SEEDS = [0, 5, 2**31, 2**63 - 1, -1, -5, -(2**31), -(2**63)]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_means_the_same_through_the_router_as_directly(tokenizer, seed):
    body = {"prompt": [7], "seed": seed}
    parsed = protocol.parse(protocol.CompletionRequest, json.dumps(body).encode())
    sent = {**internal_headers(call(body), "unified", None, "1")}
    internal = headers.read(True, "unified", sent)
    direct, routed = (
        job.make(parsed, [[7]], tokenizer, EngineConfig(), one).submits[0]
        for one in (InternalHeaders(), internal)
    )
    assert direct.seed == routed.seed
    assert int(sent["x-pds-seed"]) < 10**20 and sent["x-pds-seed"].isdecimal()  # of any release


ODD = ["5", 5.0, 5.5, True, None, [], [5], {}, 2**63, -(2**63) - 1, 10**400]


@pytest.mark.parametrize("field", ["seed", "n", "max_tokens", "max_completion_tokens", "stream"])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_what_the_engine_refuses_counts_as_not_given(field, value):
    read = call({field: value}, path=H)
    assert (read.stream, read.output_tokens) == (
        field == "stream" and value is True,
        DEFAULT_OUTPUT,
    )
    assert 0 <= read.seed < 2**63


@pytest.mark.parametrize(
    ("body", "path", "tokens"),
    [
        ({}, C, DEFAULT_OUTPUT),
        ({"max_tokens": 7, "n": 3}, C, 21),
        ({"max_tokens": 7, "max_completion_tokens": 9}, H, 9),
        ({"max_tokens": 7, "max_completion_tokens": 9}, C, 7),
        ({"max_tokens": 2**31 - 1, "n": 128}, C, 4096 * 128),
        ({"max_tokens": 2**31 - 1, "n": 129}, C, 4096),
        ({"max_tokens": -1}, C, DEFAULT_OUTPUT),
    ],
)
def test_a_request_costs_no_more_than_a_context_holds(body, path, tokens):
    assert call(body, path, longest=4096).output_tokens == tokens


def test_without_a_group_s_word_there_is_a_bound_too():
    assert call({"max_tokens": 2**31 - 1}).output_tokens == LONGEST


@pytest.mark.parametrize(
    "data",
    [
        b'{"n": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"x": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"n": [' + b"1," * 4_000_000 + b"1]}",
        b'{"seed": ' + b"9" * 8_000_000 + b"}",
        b'{"user": [' + b'"a",' * 2_000_000 + b"1]}",
        b'{"stream": "' + b"a" * 8_000_000 + b'"}',
    ],
    ids=lambda data: repr(data[:12]),
)
def test_whatever_a_field_holds_it_is_read_at_once(data):
    begun = time.process_time()
    try:
        assert call(data, policy="session").output_tokens <= LONGEST
    except RequestError as error:
        assert error.status == 400  # noqa: PT017  either will do
    assert time.process_time() - begun < 1


@pytest.mark.parametrize("name", [b'"pds_resume"', b'"pds\\u005fresume"'])
@pytest.mark.parametrize("value", [b"{}", b"[1]", b"0", b'{"output_ids": [1]}'])
def test_a_client_resumes_nothing(name, value):
    with pytest.raises(RequestError, match="router alone"):
        call(b"{%b: %b}" % (name, value))
    assert call(b"{%b: null}" % name).output_tokens
