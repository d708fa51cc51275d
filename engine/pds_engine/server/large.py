"""Large bodies: bounded by what the context could ever hold before anything is made of them.

A parser holds the interpreter's lock from a body's first byte to its last, and nobody else is
answered meanwhile. So this finds the lists and texts that may be long as raw bytes, ten times as
fast as reading them, refuses those that cannot fit, and reads the others a piece at a time. What is
left is small, and is read like a small body. In bodies of megabytes even finding them takes too
long: a process of its own (`pds_engine.reading`) has `examined` those before.
"""

from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, cast

import msgspec
from msgspec import Meta, Raw, Struct
from pydantic import create_model

from pds_engine.errors import InvalidRequest, TooLong
from pds_engine.server import protocol, scan
from pds_engine.server.strict import Body

B = TypeVar("B", bound=Body)
Form = Literal["completion", "chat", "tokenize", "detokenize"]
"""What a body is read as."""

FROM = 16 * 1024
"""Bytes from which a body is read in this manner."""
MAX_FIELD = 64 * 1024
"""Bytes of a field that is not one of READERS."""
MAX_STOPS = 256 * 1024
"""Bytes of `stop`: 16 strings of 1,024 characters, however they are escaped."""
MAX_EXTRAS = 1024 * 1024
"""Bytes of `tools`, and of `chat_template_kwargs`."""
MAX_VALUES = 16_384
"""Values within one message, within tools, and within chat_template_kwargs."""
_ESCAPED = 12
"""Bytes that JSON may spend on a character: two escapes of UTF-16."""
_SPACE = b" \t\r\n"


class _Object(Struct):
    """Accepts any JSON object, and keeps nothing of it."""


_Id = Annotated[int, Meta(ge=0, lt=2**31)]
_ids = msgspec.json.Decoder(list[_Id])
_lists = msgspec.json.Decoder(list[list[_Id]])
_text = msgspec.json.Decoder(str)
_texts = msgspec.json.Decoder(list[str])
_items = msgspec.json.Decoder(list[Raw])
_objects = msgspec.json.Decoder(list[_Object])
"""Fails at the first item that is not an object; builds nothing from those that are."""
_resume = msgspec.json.Decoder(dict[str, Raw])
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class PromptLimits(NamedTuple):
    """What one request could ever need."""

    tokens: int
    """Token ids of one prompt."""
    characters: int
    """Characters of one prompt's text."""
    prompts: int


def parse(kind: type[B], data: bytes, limits: PromptLimits) -> B:
    """`protocol.parse` for a body of any size.

    Both read alike, but for fields that nobody reads: a large body may nest them deeper, and may
    not have NaN in them, which is not JSON.

    Raises:
        InvalidRequest: as there, or a field is larger than any use of it.
        TooLong: a prompt that no context could hold; `param` names the field.
    """
    if len(data) <= FROM:
        parsed = protocol.parse(kind, data)
        if scan.long_number(data):
            for name, raw in _fields(kind, data).items():
                if name in _OPEN:
                    _check_numbers(raw, name)
        return parsed
    if not data.isascii():  # fields that nobody knows are skipped below, whatever they hold
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise _unreadable(error) from error
    raws = _fields(kind, data)
    rest: list[bytes] = []
    read: dict[str, Any] = {}
    for name, raw in raws.items():
        reader = _TEXT_ALONE if (kind, name) == _TEXT_FIELD else _READERS.get(name)
        if reader is None or raw == b"null":
            most = MAX_STOPS if name == "stop" else MAX_FIELD
            if len(raw) > most:
                raise InvalidRequest(f"{name} is above {most} bytes", param=name)
            rest.append(b'"%s":%s' % (name.encode(), raw))
            continue
        try:
            read[name] = reader(raw, limits)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"{name}: {error}", param=name) from error
        except _MALFORMED as error:
            raise _unreadable(error) from error
        rest.append(b'"%s":%s' % (name.encode(), _STAND_INS[name]))
    if read.get("messages") == []:
        raise InvalidRequest("messages: there are none", param="messages")
    parsed = protocol.parse(kind, b"{%s}" % b",".join(rest))
    return parsed.model_copy(update=read)


def has_messages(data: bytes) -> bool:
    """Whether a body of /tokenize is a chat's. Raises InvalidRequest when it is not an object."""
    if len(data) <= FROM:
        return protocol.has_messages(data)
    return _fields(protocol.TokenizeChat, data).get("messages", b"null") != b"null"


# ---- the examination, in the process that reads large bodies -------------------------------------


def question(form: Form, limits: PromptLimits) -> bytes:
    """What `examined` is to look for."""
    return msgspec.msgpack.encode((form, limits))


def examined(about: bytes, data: bytes) -> bytes:
    """The body without the fields that nobody reads, for `parse`. Raises what `parse` raises."""
    form, limits = msgspec.msgpack.decode(about, type=tuple[Form, PromptLimits])
    kind = _kind(form, data)
    parse(kind, data, limits)
    fields = _fields(kind, data)
    if "pds_resume" in fields:
        fields["pds_resume"] = b'{"output_ids":%b}' % _resumed_ids(fields["pds_resume"])
    return b"{%b}" % b",".join(b'"%b":%b' % (n.encode(), raw) for n, raw in fields.items())


def _kind(form: Form, data: bytes) -> type[Body]:
    if form == "tokenize":
        return protocol.TokenizeChat if has_messages(data) else protocol.TokenizeText
    return _KINDS[form]


_KINDS: dict[Form, type[Body]] = {
    "completion": protocol.CompletionRequest,
    "chat": protocol.ChatRequest,
    "detokenize": protocol.DetokenizeRequest,
}

# ---- shared -------------------------------------------------------------------------------------

_shapes: dict[type[Body], msgspec.json.Decoder[Any]] = {}


def _fields(kind: type[Body], data: bytes) -> dict[str, bytes]:
    """The fields of a body that `kind` knows, as they came."""
    decoder = _shapes.get(kind)
    if decoder is None:
        fields = [(name, Raw, Raw()) for name in kind.model_fields]
        shape = msgspec.defstruct(kind.__name__, fields)
        decoder = _shapes[kind] = msgspec.json.Decoder(shape)
    try:
        found = decoder.decode(data)
    except msgspec.ValidationError as error:
        raise InvalidRequest("the body cannot be read: it is not a JSON object") from error
    except _MALFORMED as error:
        raise _unreadable(error) from error
    raws = {name: bytes(getattr(found, name)).strip(_SPACE) for name in kind.model_fields}
    return {name: raw for name, raw in raws.items() if raw}


def _unreadable(error: Exception) -> InvalidRequest:
    return InvalidRequest(f"the body cannot be read: {error}")


# ---- the fields that may be large ---------------------------------------------------------------


def _prompt(raw: bytes, limits: PromptLimits) -> str | list[str] | list[int] | list[list[int]]:
    if not raw.startswith(b"["):
        return _one_text(raw, limits, "prompt")
    first = raw[1:].lstrip(_SPACE)[:1]
    if first == b'"':
        _check_prompts(scan.strings(raw), limits)
        texts = _texts.decode(raw)
        for text in texts:
            _check_text(len(text), limits.characters, limits, "prompt")
        return texts
    if first == b"[":
        opened = raw.count(b"[") - 1
        _check_prompts(opened, limits)
        if raw.count(b",") + 1 > opened * limits.tokens:  # one of them must be longer than it may
            raise _too_many(raw, limits, "prompt")
        lists = _lists.decode(raw)
        if any(len(ids) > limits.tokens for ids in lists):
            raise _too_many(raw, limits, "prompt")
        return lists
    return _one_list(raw, limits, "prompt")


def _check_prompts(count: int, limits: PromptLimits) -> None:
    if count > limits.prompts:
        raise InvalidRequest(
            f"prompt: more than the {limits.prompts} prompts that this engine takes at once",
            param="prompt",
        )


def _one_text(raw: bytes, limits: PromptLimits, param: str) -> str:
    _check_text(len(raw), limits.characters * _ESCAPED + 2, limits, param)
    return _text.decode(raw)


def _check_text(size: int, most: int, limits: PromptLimits, param: str) -> None:
    if size > most:
        raise TooLong(
            f"the {param}'s text of {size} cannot fit the context of {limits.tokens} tokens",
            param=param,
        )


def _text_alone(raw: bytes, limits: PromptLimits) -> str:
    return _one_text(raw, limits, "prompt")


def _one_list(raw: bytes, limits: PromptLimits, param: str) -> list[int]:
    if raw.count(b",") + 1 > limits.tokens:
        raise _too_many(raw, limits, param)
    return _ids.decode(raw)


def _too_many(raw: bytes, limits: PromptLimits, param: str) -> TooLong:
    return TooLong(
        f"the {param}'s {raw.count(b',') + 1} token ids exceed the context of {limits.tokens}"
        " tokens",
        param=param,
    )


def _tokens(raw: bytes, limits: PromptLimits) -> list[int]:
    return _one_list(raw, limits, "tokens")


def _resumed(raw: bytes, limits: PromptLimits) -> protocol.Resume:
    ids = _one_list(_resumed_ids(raw), limits, "pds_resume")
    return protocol.Resume.model_construct(output_ids=ids)


def _resumed_ids(raw: bytes) -> bytes:
    return bytes(_resume.decode(raw).get("output_ids", Raw(b"null")))


def _messages(raw: bytes, limits: PromptLimits) -> list[protocol.ChatMessage]:
    """Each message is a piece of its own."""
    if len(raw) > limits.characters * _ESCAPED + MAX_FIELD:
        raise TooLong(
            f"the messages' {len(raw)} bytes cannot fit the context of {limits.tokens} tokens",
            param="messages",
        )
    # A message costs a token at least.
    if raw.count(b"{") > limits.tokens and scan.values(raw, b"{") > limits.tokens:
        raise TooLong(
            f"more messages and parts than the context's {limits.tokens} tokens", param="messages"
        )
    _objects.decode(raw)
    return [_message(bytes(item), at) for at, item in enumerate(_items.decode(raw))]


def _message(raw: bytes, at: int) -> protocol.ChatMessage:
    where = f"messages[{at}]"
    try:
        _check_few(raw, where)
        (message,) = _alone("messages", b"[%b]" % raw)
    except InvalidRequest as error:
        param = (error.param or "").replace("messages[0]", where)
        message = error.message.replace("messages[0]", where)
        raise InvalidRequest(message, param=param) from error
    return cast("protocol.ChatMessage", message)


def _tools(raw: bytes, limits: PromptLimits) -> Any:
    return _extra(raw, "tools")


def _kwargs(raw: bytes, limits: PromptLimits) -> Any:
    return _extra(raw, "chat_template_kwargs")


def _extra(raw: bytes, name: str) -> Any:
    if len(raw) > MAX_EXTRAS:
        raise InvalidRequest(f"{name} is above {MAX_EXTRAS} bytes", param=name)
    _check_few(raw, name)
    return _alone(name, raw)


def _check_few(raw: bytes, param: str) -> None:
    _check_numbers(raw, param)
    marks = (b",", b"[", b"{")
    if sum(map(raw.count, marks)) > MAX_VALUES and scan.values(raw, *marks) > MAX_VALUES:
        raise InvalidRequest(f"{param} has more than {MAX_VALUES} values", param=param)


def _check_numbers(raw: bytes, param: str) -> None:
    if scan.long_number(raw):
        raise InvalidRequest(
            f"{param} has a number of more than {scan.MAX_DIGITS} digits", param=param
        )


@cache
def _kind_of(name: str) -> type[Body]:
    """A body of one field of a chat, which is read like that field in a small body."""
    field = protocol.ChatRequest.model_fields[name]
    fields: dict[str, Any] = {name: (field.annotation, field)}
    return create_model(name, __base__=Body, **fields)


def _alone(name: str, raw: bytes) -> Any:
    return getattr(protocol.parse(_kind_of(name), b'{"%b":%b}' % (name.encode(), raw)), name)


_READERS = {
    "prompt": _prompt,
    "messages": _messages,
    "tools": _tools,
    "chat_template_kwargs": _kwargs,
    "tokens": _tokens,
    "pds_resume": _resumed,
}
_TEXT_FIELD, _TEXT_ALONE = (protocol.TokenizeText, "prompt"), _text_alone
"""Where a prompt is a text and nothing else."""
_OPEN = frozenset({"messages", "tools", "chat_template_kwargs"})
"""Fields that may hold any JSON."""
_STAND_INS = {
    "prompt": b'""',
    "messages": b'[{"role":"user"}]',
    "tools": b"[]",
    "chat_template_kwargs": b"{}",
    "tokens": b"[]",
    "pds_resume": b'{"output_ids":[]}',
}
