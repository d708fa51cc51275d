import re

import pytest
from pds_engine.errors import ConfigError, InvalidRequest
from pds_engine.text.template import ChatTemplate
from pds_engine.text.tokenizer import Tokenizer


def rendered(source: str, **variables: object) -> str:
    return ChatTemplate(source).render(variables, max_length=10_000)


def test_the_tiny_model_s(tokenizer: Tokenizer):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert tokenizer.template is not None
    text = tokenizer.template.render(
        {"messages": messages, "add_generation_prompt": True}, max_length=999
    )
    assert text == "<|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),  # blocks trimmed, left-stripped
        ("{{ x | tojson }}", '{"é": "<b>"}'),
        ("{{ x | tojson(indent=2) }}", '{\n  "é": "<b>"\n}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% generation %}said{% endgeneration %}", "said"),
        ("{{ missing }}|{{ x['é'] }}", "|<b>"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}", "2"),
    ],
)
def test_conventions(source: str, expected: str):
    assert rendered(source, x={"é": "<b>"}) == expected


def test_now():
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", rendered("{{ strftime_now('%Y-%m-%d') }}"))


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ x.append(1) }}",
        "{{ 1 // 0 }}",
        "{{ 'a' + 1 }}",
        "{{ x.y.z }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}too long{% endfor %}",
        "{% macro again(x) %}{{ again(x) }}{% endmacro %}{{ again(x) }}",
    ],
)
def test_what_is_refused_is_the_client_s_to_change(source: str):
    with pytest.raises(InvalidRequest) as caught:
        rendered(source, x=[])
    assert caught.value.param == "messages"


def test_the_model_s_own_words_are_passed_on():
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        rendered("{{ raise_exception('roles must alternate') }}")


def test_a_template_that_does_not_parse_is_a_setting():
    with pytest.raises(ConfigError, match="chat template"):
        ChatTemplate("{% for %}")


def test_values_nested_however_deep_are_the_client_s_to_change():
    deep: list[object] = []
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(InvalidRequest):
        rendered("{{ x | tojson }}", x=deep)


def test_messages_with_tools_have_a_template_of_their_own():
    template = ChatTemplate("plain", "with {{ tools | length }}")
    assert template.render({"tools": None}, max_length=9) == "plain"
    assert template.render({"tools": [{}]}, max_length=9) == "with 1"
