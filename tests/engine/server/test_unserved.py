"""Fields that would change the answer and are not served are refused by name; hints are ignored."""

from pathlib import Path

import pytest
from pds_engine.messages import Submit
from pds_engine.server import unserved

C, H = "/v1/completions", "/v1/chat/completions"
BASE = {C: {"prompt": "a"}, H: {"messages": [{"role": "user", "content": "a"}]}}
REFERENCE = Path(__file__).parents[3] / "docs" / "reference.md"
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}

BOTH = [
    ("structured_outputs", {"json": SCHEMA}),
    ("structured_outputs", {"choice": ["a", "b"]}),
    ("structural_tag", "x"),
    ("guided_json", SCHEMA),
    ("guided_json", '{"type": "object"}'),
    ("guided_regex", "a+"),
    ("guided_choice", ["a", "b"]),
    ("guided_grammar", "root ::= 'a'"),
    ("guided_whitespace_pattern", "\\s"),
    ("bad_words", ["a"]),
    ("allowed_token_ids", [1, 2]),
    ("allowed_token_ids", []),
    ("logits_processors", ["a.b"]),
    ("regex", "a+"),
    ("ebnf", 'root ::= "a"'),
    ("json_schema", SCHEMA),
    ("grammar", 'root ::= "a"'),
    ("use_beam_search", True),
    ("use_beam_search", 1),
    ("length_penalty", 0.5),
    ("length_penalty", True),
    ("early_stopping", True),
    ("watermarking", True),
    ("thinking_token_budget", 5),
    ("repetition_detection", {"max_pattern_size": 3}),
    ("truncate_prompt_tokens", 5),
    ("truncate_prompt_tokens", -1),
    ("logprob_token_ids", [1]),
    ("return_token_ids", True),
    ("return_tokens_as_token_ids", True),
    ("return_prompt_text", True),
    ("cache_salt", "s"),
    ("kv_transfer_params", {"do_remote_decode": True}),
    ("ec_transfer_params", {"a": 1}),
    ("vllm_xargs", {"a": 1}),
    ("response_format", {"type": "json_object"}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}),
    ("response_format", {"type": "structural_tag", "structures": [], "triggers": []}),
    ("response_format", "text"),
]
TEXT = [("prompt_embeds", "AAAA"), ("suffix", "b"), ("best_of", 2)]
CHAT = [
    ("echo", True),
    ("functions", [{"name": "f"}]),
    ("function_call", {"name": "f"}),
    ("tool_choice", "required"),
    ("tool_choice", {"type": "function", "function": {"name": "f"}}),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "a", "format": "wav"}),
    ("web_search_options", {}),
    ("moderation", {"model": "m"}),
    ("reasoning_effort", "high"),
    ("verbosity", "low"),
    ("include_reasoning", False),
    ("chat_template", "{{ messages }}"),
    ("documents", [{"title": "a", "text": "b"}]),
    ("mm_processor_kwargs", {"a": 1}),
    ("media_io_kwargs", {"image": {"a": 1}}),
]
ASKED = (
    [(p, *one) for p in (C, H) for one in BOTH] + [(C, *t) for t in TEXT] + [(H, *c) for c in CHAT]
)


@pytest.mark.parametrize(("path", "field", "value"), ASKED)
async def test_it_is_refused_by_name(served, script, path, field, value):
    async with served(script([300])) as s:
        answer = await s.client.post(path, json={**BASE[path], field: value})
        assert s.scheduler.of(Submit) == []
    error = answer.json()["error"]
    assert answer.status_code == 400, error
    assert error["param"].partition(".")[0] == field and field in error["message"]


async def test_tokenizing_with_another_template_is_refused_too(served, script):
    async with served(script([300])) as s:
        body = {**BASE[H], "chat_template": "x"}
        answer = await s.client.post("/tokenize", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "chat_template")


FIELDS = {
    C: {*unserved.Unserved.model_fields, *unserved.UnservedOfText.model_fields},
    H: {
        *unserved.Unserved.model_fields,
        *unserved.UnservedOfChat.model_fields,
        *unserved.Templating.model_fields,
    },
}


@pytest.mark.parametrize("path", [C, H])
async def test_null_asks_for_nothing(served, script, path):
    body = {**BASE[path], **dict.fromkeys(FIELDS[path] | {"response_format"})}
    async with served(script([300])) as s:
        assert (await s.client.post(path, json=body)).status_code == 200


def test_every_field_of_the_table_is_tried_and_documented():
    asked = {field for _, field, _ in ASKED}
    reference = REFERENCE.read_text()
    for field in FIELDS[C] | FIELDS[H]:
        assert field in asked
        assert f"`{field}`" in reference


HARMLESS = {
    "structured_outputs": {},
    "guided_choice": [],
    "bad_words": [],
    "logits_processors": [],
    "use_beam_search": False,
    "length_penalty": 1.0,
    "early_stopping": False,
    "return_token_ids": False,
    "kv_transfer_params": {},
    "vllm_xargs": {},
    "response_format": {"type": "text"},
    "user": "u",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "auto",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "request_id": "r",
    "guided_decoding_backend": "xgrammar",
    "ignore_eos": True,
    "repetition_penalty": 1.0,
}
HARMLESS_CHAT = {
    "parallel_tool_calls": True,
    "prediction": {"type": "content", "content": "a"},
    "functions": [],
    "function_call": "none",
    "modalities": ["text"],
    "echo": False,
    "documents": [],
    "include_reasoning": True,
    "reasoning_effort": "none",
    "verbosity": "medium",
    "max_completion_tokens": 4,
    "tool_choice": "auto",
}


@pytest.mark.parametrize("path", [C, H])
async def test_hints_and_what_changes_nothing_are_taken(served, script, path):
    body = {**BASE[path], **HARMLESS, **(HARMLESS_CHAT if path == H else {})}
    async with served(script([300])) as s:
        answer = await s.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
