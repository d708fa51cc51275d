"""The bodies that clients send: OpenAI's completions and chat completions, with vLLM's additions.

Types are strict ("5" is no integer); null means the default. Fields that nobody knows are ignored,
as both do; known ones that would change the answer and are not served are refused (`unserved`).
Bounds that need the model (vocabulary, context) are checked by `job`.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from pds_engine.errors import InvalidRequest
from pds_engine.messages.bounds import (
    INT32_MAX,
    MAX_CHOICES,
    MAX_LOGPROBS,
    MAX_STOP_IDS,
    REPETITION,
)
from pds_engine.server.strict import Body
from pds_engine.server.unserved import Templating, Unserved, UnservedOfChat, UnservedOfText

T = TypeVar("T", bound="Body")
Item = TypeVar("Item")
Many = Annotated[list[Item], Field(fail_fast=True)]
"""A list that fails at its first wrong item: a body of 8 MB can hold millions of them."""
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX)]
Tokens = Annotated[int, Field(ge=1, le=INT32_MAX)]
"""A number of tokens. The context has room for fewer, which is checked with the prompt."""
Chance = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Likeliest = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)]
StopText = Annotated[str, Field(min_length=1, max_length=1024)]


class StreamOptions(Body):
    include_usage: bool | None = None


class Resume(Body):
    """Given by the router alone: tokens that the client already has (router.md)."""

    output_ids: Many[TokenId]


class ResponseFormat(Body):
    type: Literal["text"]


class Common(Unserved):
    """What completions and chat completions share."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: Tokens | None = None
    min_tokens: int | None = Field(None, ge=0, le=INT32_MAX)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: Chance | None = None
    top_k: int | None = Field(None, ge=-1, le=INT32_MAX)
    """-1 and 0: all."""
    min_p: Chance | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopText | Annotated[Many[StopText], Field(max_length=16)] | None = None
    stop_token_ids: Many[TokenId] | None = Field(None, max_length=MAX_STOP_IDS)
    include_stop_str_in_output: bool | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(None, ge=REPETITION.least, le=REPETITION.most)
    logit_bias: dict[str, Any] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: Likeliest | None = None
    priority: int | None = Field(None, ge=-(2**31), lt=2**31)
    user: str | None = None
    response_format: ResponseFormat | None = None
    pds_resume: Resume | None = None


class CompletionRequest(UnservedOfText, Common):
    prompt: str | Many[str] | Many[TokenId] | Many[Many[TokenId]]
    logprobs: Likeliest | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES)
    add_special_tokens: bool | None = None


class TextPart(Body):
    type: Literal["text", "input_text", "output_text"]
    text: str


class ChatMessage(Body):
    # Tool calls and names go to the template as they are.
    model_config = ConfigDict(extra="allow", title="Message")
    __qualname__ = "Message"  # what /openapi.json calls it

    role: str = Field(min_length=1, max_length=64)
    content: str | Many[TextPart] | None = None


class Templated(Templating):
    """What makes a prompt of messages."""

    messages: Many[ChatMessage] = Field(min_length=1)
    tools: Many[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_special_tokens: bool | None = None


class ChatRequest(UnservedOfChat, Templated, Common):
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Likeliest | None = None
    tool_choice: Literal["none", "auto"] | None = None


class TokenizeText(Body):
    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChat(Templated):
    model: str | None = None
    return_token_strs: bool | None = None


class _Either(Body):
    messages: Any = None


class DetokenizeRequest(Body):
    model: str | None = None
    tokens: Many[TokenId]


class DrainRequest(Body):
    deadline_seconds: float = Field(ge=0, le=86400)


class GoneRequest(Body):
    incarnation: str = Field(min_length=1, max_length=256)


def parse(kind: type[T], data: bytes) -> T:
    """`data` as a `kind`.

    Raises:
        InvalidRequest: not JSON, or `param` names a field of a wrong type or out of bounds.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise _explained(error) from error


def has_messages(data: bytes) -> bool:
    """Whether a body of /tokenize is a chat's. Raises InvalidRequest when it is not an object."""
    return parse(_Either, data).messages is not None


_TAG = re.compile(r"^(str|int|float|bool|dict|TextPart|ChatMessage)$|\W")
"""pydantic puts the members of a union into the path, as types rather than names."""


def _explained(error: ValidationError) -> InvalidRequest:
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    first = _path(errors[0]["loc"])
    if not first:
        wrong_json = errors[0]["type"] == "json_invalid"
        said = errors[0]["msg"] if wrong_json else "it is not a JSON object"
        return InvalidRequest(f"the body cannot be read: {said}")
    field = first[0]
    reasons = list(dict.fromkeys(e["msg"] for e in errors if _path(e["loc"])[:1] == [field]))
    where = _spell(first)
    return InvalidRequest(f"{where}: {', or: '.join(reasons[:4])}", param=where)


def _path(loc: tuple[int | str, ...]) -> list[int | str]:
    """The names and indices of a location, union members left out."""
    return [
        part
        for at, part in enumerate(loc)
        if at == 0 or isinstance(part, int) or not _TAG.search(part)
    ]


def _spell(path: list[int | str]) -> str:
    """`messages[0].content`, as OpenAI spells a param."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
