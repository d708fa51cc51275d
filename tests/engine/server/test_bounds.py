"""No number ends a service: whatever a client may send is refused by its field's name, or can be
sent to the scheduler and worked on by a rank."""

import json
import time
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from pds_engine import signing
from pds_engine.config import EngineConfig
from pds_engine.errors import RequestError
from pds_engine.messages import Sampling, Submit
from pds_engine.messages.bounds import SAMPLING, SUBMIT, outside
from pds_engine.scheduler.admission import reject_reason
from pds_engine.scheduler.settings import Settings
from pds_engine.server import job, protocol
from pds_engine.server.headers import InternalHeaders
from pds_engine.wire import decode, encode
from pydantic import BaseModel

C, H = "/v1/completions", "/v1/chat/completions"
SAY = [{"role": "user", "content": "a"}]
NUMBERS = (
    str(2**31),
    str(2**63),
    str(2**64),
    str(10**400),
    "1e308",
    "-1e308",
    "1e400",
    "NaN",
    "-1",
    str(-(2**63)),
)
BODIES: list[tuple[str, type[BaseModel], dict[str, Any]]] = [
    (C, protocol.CompletionRequest, {"prompt": "a"}),
    (H, protocol.ChatRequest, {"messages": SAY}),
    ("/tokenize", protocol.TokenizeText, {"prompt": "a"}),
    ("/tokenize", protocol.TokenizeChat, {"messages": SAY}),
    ("/detokenize", protocol.DetokenizeRequest, {"tokens": [5]}),
    ("/pds/drain", protocol.DrainRequest, {"deadline_seconds": 5}),
    ("/pds/peers/gone", protocol.GoneRequest, {"incarnation": "i"}),
]
HOLE = "@@"


def shapes(kind: Any) -> Iterator[Any]:
    """What JSON a field of this annotation may hold, with a hole in the place of each number."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        yield from shapes(args[0])
    elif origin in (Union, UnionType):
        for arg in args:
            yield from shapes(arg)
    elif origin is list:
        yield from ([inner] for inner in shapes(args[0]))
    elif origin is dict or kind is dict:
        yield {"1": HOLE}
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            yield from ({name: inner} for inner in shapes(field.annotation))
    elif kind is not NoneType:
        yield HOLE


def cases(kind: type[BaseModel], good: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The name of a field, and a body that has a number there."""
    for name, field in kind.model_fields.items():
        for shape in {json.dumps(shape): shape for shape in (HOLE, *shapes(field.annotation))}:
            body = json.dumps({**good, name: json.loads(shape)})
            yield from ((name, body.replace(f'"{HOLE}"', number)) for number in NUMBERS)


def test_the_table_reaches_numbers_wherever_they_are():
    fields = {
        body for _, body in cases(protocol.ChatRequest, {"messages": SAY}) if "-1e308" in body
    }
    for inside in ('"top_k": -1e308', '"logit_bias": {"1": -1e308}', '"stop_token_ids": [-1e308]'):
        assert any(inside in body for body in fields), inside
    assert any('"pds_resume": {"output_ids": [-1e308]}' in body for body in fields)


@pytest.mark.parametrize(
    ("path", "kind", "good"), BODIES, ids=lambda one: getattr(one, "__name__", "")
)
async def test_every_field_has_bounds(served, script, worker, key, path, kind, good):
    wrong = []
    async with served(script([300])) as s:
        signed = {}
        if path.startswith("/pds/"):
            signed = signing.signed(key, "POST", path, {}, int(time.time()) + 60)
        for name, body in cases(kind, good):
            answer = await s.client.post(path, content=body, headers=signed)
            if answer.status_code == 200:
                continue
            error = answer.json()["error"]
            if answer.status_code != 400 or not (error["param"] or "").startswith(name):
                wrong.append((body[:120], answer.status_code, error))
        assert s.scheduler_client.error is None
        for submit in s.scheduler.of(Submit):
            assert outside(submit) is None
            worker.take(submit)
    assert wrong == []


@pytest.mark.parametrize("top_k", [-1, 0, 1, 2**31 - 1])
async def test_top_k_may_be_all_or_more_than_there_are(served, script, worker, top_k):
    async with served(script([300])) as s:
        answer = await s.client.post(C, json={"prompt": "a", "top_k": top_k})
        (submit,) = s.scheduler.of(Submit)
    assert answer.status_code == 200
    worker.take(submit)


@pytest.mark.parametrize("name", ["x-pds-seed", "x-pds-created"])
@pytest.mark.parametrize("number", [*NUMBERS, "0", "", "٣", str(10**20 - 1)])
async def test_the_router_s_headers_have_bounds(served, script, worker, key, name, number):
    async with served(script([300])) as s:
        ours = {"x-pds-role": "unified", name: number}
        signed = signing.signed(key, "POST", C, ours, int(time.time()) + 60)
        raw = {name: value.encode() for name, value in signed.items()}
        answer = await s.client.post(C, json={"prompt": "a"}, headers=raw)
        assert s.scheduler_client.error is None
        for submit in s.scheduler.of(Submit):
            assert outside(submit) is None
            worker.take(submit)
    if answer.status_code != 200:
        assert (answer.status_code, answer.json()["error"]["param"]) in ((400, name), (403, None))


@pytest.mark.parametrize("port", ["0", "65536", "9" * 30, "²", "x"])
async def test_a_peer_s_port_has_bounds(served, script, key, port):
    async with served(script([300]), role="decode") as s:
        ours = {"x-pds-role": "decode", "x-pds-peer-group": "p"}
        ours["x-pds-peer"] = f"10.0.0.1:{port}"
        signed = signing.signed(key, "POST", C, ours, int(time.time()) + 60)
        raw = {name: value.encode() for name, value in signed.items()}
        answer = await s.client.post(C, json={"prompt": "a"}, headers=raw)
    assert answer.status_code in (400, 403)


NUMBER = st.sampled_from(
    [-(2**63), -2, -1, -0.5, 0, 1e-320, 1e-6, 0.5, 1, 1.0, 2, 5, 20, 2**31 - 1, 2**53, 2**63 - 1]
)
ANY = st.one_of(
    NUMBER,
    st.none(),
    st.booleans(),
    st.lists(NUMBER, max_size=3),
    st.dictionaries(st.sampled_from(["0", "7", "4095"]), NUMBER, max_size=3),
)
FIELDS = sorted({*protocol.CompletionRequest.model_fields} - {"prompt", "model", "echo"})
SETTINGS = Settings.of(EngineConfig())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    prompt=st.lists(st.integers(0, 4095), min_size=1, max_size=5),
    more=st.dictionaries(st.sampled_from(FIELDS), ANY, max_size=5),
)
def test_what_is_accepted_can_be_worked_on(tokenizer, worker, prompt, more):
    body = json.dumps({"prompt": prompt, **more}).encode()
    config = EngineConfig()
    refused = None
    try:
        parsed = protocol.parse(protocol.CompletionRequest, body)
        made = job.make(parsed, [prompt], tokenizer, config, InternalHeaders())
    except RequestError as error:
        refused = error
    if refused is not None:
        assert refused.status == 400 and refused.param
        return
    for submit in made.submits[:2]:
        received = decode(encode(submit))
        assert received == submit
        assert reject_reason(received, SETTINGS, 10**6) is None
        assert 0 <= worker.take(received) < tokenizer.vocabulary


GOOD = Submit(request_id="r", prompt_ids=(1,), sampling=Sampling(max_tokens=4), seed=0)


@pytest.mark.parametrize("name", [*SAMPLING, *SUBMIT])
@pytest.mark.parametrize("value", [2**63, -(2**63), float("inf"), float("nan")])
def test_the_scheduler_looks_again(name, value):
    if name in SUBMIT:
        submit = replace(GOOD, **{name: value})
    else:
        submit = replace(GOOD, sampling=replace(GOOD.sampling, **{name: value}))
    problem = reject_reason(submit, SETTINGS, 100)
    assert problem is not None and (problem.status, problem.param) == (400, name)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"prompt_ids": (1, 2**32)}, "prompt"),
        ({"prompt_ids": (-1,)}, "prompt"),
        ({"output_ids": (2**64 - 1,)}, "output_ids"),
        ({"sampling": Sampling(max_tokens=4, stop_token_ids=(-5,))}, "stop_token_ids"),
        ({"sampling": Sampling(max_tokens=4, logit_bias={2**40: 1.0})}, "logit_bias"),
        ({"sampling": Sampling(max_tokens=4, logit_bias={1: float("nan")})}, "logit_bias"),
    ],
)
def test_the_scheduler_looks_at_ids_too(change, param):
    problem = reject_reason(replace(GOOD, **change), SETTINGS, 100)
    assert problem is not None and problem.param == param


def test_all_numbers_of_a_submit_have_bounds():
    """A field added later is bounded too."""
    for kind, bounds, others in (
        (Sampling, SAMPLING, {"logit_bias", "stop_token_ids"}),
        (Submit, SUBMIT, {"request_id", "prompt_ids", "output_ids", "sampling", "source"}),
    ):
        named = {name for name in kind.__struct_fields__ if name not in ("role_hint", "resumable")}
        assert named == {*bounds, *others}
