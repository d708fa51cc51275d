"""Chat templates: Jinja in a sandbox, by the conventions of Hugging Face's tokenizers.

https://huggingface.co/docs/transformers/chat_templating names them: `messages`, `tools`,
`add_generation_prompt`, the special tokens, `raise_exception`, `strftime_now`, `tojson` without
HTML escapes, blocks trimmed, loop controls, and a `generation` block that only marks.
"""

import json
import time
from collections.abc import Mapping
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pds_engine.errors import ConfigError, InvalidRequest

MAX_SECONDS = 5.0
_REFUSALS = (
    jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError
)  # fmt: skip


class ChatTemplate:
    """A compiled template, and another one for messages with tools where the model has one.

    Raises ConfigError when a source is not a template.
    """

    def __init__(self, source: str, with_tools: str | None = None) -> None:
        self.source = source
        self._template = _compiled(source)
        self._with_tools = self._template if with_tools is None else _compiled(with_tools)

    def render(self, variables: Mapping[str, Any], *, max_length: int) -> str:
        """The prompt's text.

        Raises:
            InvalidRequest: the template refuses the messages, or its text would be longer than
                `max_length` characters or take more than MAX_SECONDS.
        """
        template = self._with_tools if variables.get("tools") else self._template
        deadline = time.monotonic() + MAX_SECONDS
        pieces: list[str] = []
        length = 0
        try:
            for piece in template.generate(**variables):
                pieces.append(piece)
                length += len(piece)
                if length > max_length or time.monotonic() > deadline:
                    raise InvalidRequest(
                        f"the chat template makes more than {max_length} characters of these"
                        " messages, or takes too long",
                        param="messages",
                    )
        except _REFUSALS as error:
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return "".join(pieces)


def _compiled(source: str) -> jinja2.Template:
    try:
        return _environment().from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise ConfigError(f"the model's chat template does not parse: {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = time.strftime
    return environment


class _Generation(Extension):
    """`{% generation %}` marks what an assistant said, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012  the base class declares it so

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
