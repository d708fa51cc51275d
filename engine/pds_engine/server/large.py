"""Large bodies: bounded by what the context could ever hold before anything is made of them.

A parser holds the interpreter's lock from a body's first byte to its last, and nobody else is
answered meanwhile. So the lists and texts that may be long are found first, as raw bytes (which is
ten times as fast as reading them), refused where they cannot fit, and then read a piece at a time.
What is left is small, and read as a small body is. Even finding them takes too long in bodies of
megabytes: those are `examined` by a process of their own (`pds_engine.reading`) before.
"""

from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Meta, Raw

from pds_engine.errors import InvalidRequest, TooLong
from pds_engine.server import protocol
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
MAX_VALUES = 16_384
"""Values within one message, within tools, and within chat_template_kwargs."""
_ESCAPED = 12
"""Bytes that JSON may spend on a character: two escapes of UTF-16."""
_SPACE = b" \t\r\n"

_Id = Annotated[int, Meta(ge=0, lt=2**31)]
_ids = msgspec.json.Decoder(list[_Id])
_text = msgspec.json.Decoder(str)
_items = msgspec.json.Decoder(list[Raw])
_tools = msgspec.json.Decoder(list[dict[str, Any]])
_object = msgspec.json.Decoder(dict[str, Any])
_resume = msgspec.json.Decoder(dict[str, Raw])
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Limits(NamedTuple):
    """What one request could ever need."""

    tokens: int
    """Of one prompt."""
    characters: int
    """Of one prompt's text."""
    prompts: int


def parse(kind: type[B], data: bytes, limits: Limits) -> B:
    """`protocol.parse` for a body of any size.

    Raises:
        InvalidRequest: as there, or a field is larger than any use of it.
        TooLong: a prompt that no context could hold; `param` names the field.
    """
    if len(data) <= FROM:
        return protocol.parse(kind, data)
    raws = _fields(kind, data)
    rest: list[bytes] = []
    read: dict[str, Any] = {}
    for name, raw in raws.items():
        reader = _READERS.get(name)
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


def question(form: Form, limits: Limits) -> bytes:
    """What `examined` is to look for."""
    return msgspec.msgpack.encode((form, limits))


def examined(about: bytes, data: bytes) -> bytes:
    """The body without what nobody reads of it. `parse` takes it; and raises what `parse` does."""
    form, limits = msgspec.msgpack.decode(about, type=tuple[Form, Limits])
    kind = _kind(form, data)
    parse(kind, data, limits)
    fields = (b'"%b":%b' % (name.encode(), raw) for name, raw in _fields(kind, data).items())
    return b"{%b}" % b",".join(fields)


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


def _prompt(raw: bytes, limits: Limits) -> str | list[str] | list[int] | list[list[int]]:
    if not raw.startswith(b"["):
        return _one_text(raw, limits, "prompt")
    first = raw[1:].lstrip(_SPACE)[:1]
    if first not in (b'"', b"["):
        return _one_list(raw, limits, "prompt")
    opened = _strings(raw) if first == b'"' else raw.count(b"[") - 1
    if opened > limits.prompts:
        raise InvalidRequest(
            f"prompt: more than the {limits.prompts} prompts that this engine takes at once",
            param="prompt",
        )
    items = [bytes(item).strip(_SPACE) for item in _items.decode(raw)]
    if first == b'"':
        return [_one_text(item, limits, "prompt") for item in items]
    return [_one_list(item, limits, "prompt") for item in items]


def _one_text(raw: bytes, limits: Limits, param: str) -> str:
    if len(raw) > limits.characters * _ESCAPED + 2:
        raise TooLong(
            f"the {param}'s {len(raw)} bytes cannot fit the context of {limits.tokens} tokens",
            param=param,
        )
    return _text.decode(raw)


def _one_list(raw: bytes, limits: Limits, param: str) -> list[int]:
    count = raw.count(b",") + 1
    if count > limits.tokens:
        raise TooLong(
            f"the {param}'s {count} token ids exceed the context of {limits.tokens} tokens",
            param=param,
        )
    return _ids.decode(raw)


def _tokens(raw: bytes, limits: Limits) -> list[int]:
    return _one_list(raw, limits, "tokens")


def _resumed(raw: bytes, limits: Limits) -> protocol.Resume:
    ids = bytes(_resume.decode(raw).get("output_ids", Raw(b"null")))
    return protocol.Resume.model_construct(output_ids=_one_list(ids, limits, "pds_resume"))


def _messages(raw: bytes, limits: Limits) -> list[protocol.Message]:
    """Each message is a piece of its own."""
    if len(raw) > limits.characters * _ESCAPED + MAX_FIELD:
        raise TooLong(
            f"the messages' {len(raw)} bytes cannot fit the context of {limits.tokens} tokens",
            param="messages",
        )
    # A message costs a token at least.
    if raw.count(b"{") > limits.tokens and _values(raw, b"{") > limits.tokens:
        raise TooLong(
            f"more messages and parts than the context's {limits.tokens} tokens", param="messages"
        )
    return [_message(bytes(item), at) for at, item in enumerate(_items.decode(raw))]


def _message(raw: bytes, at: int) -> protocol.Message:
    where = f"messages[{at}]"
    try:
        return protocol.parse(protocol.Message, _few(raw, where))
    except InvalidRequest as error:
        if error.param == where:
            raise
        param = f"{where}.{error.param}" if error.param else where
        raise InvalidRequest(f"{where}: {error.message}", param=param) from error


def _tool_list(raw: bytes, limits: Limits) -> list[dict[str, Any]]:
    return _tools.decode(_few(raw, "tools"))


def _kwargs(raw: bytes, limits: Limits) -> dict[str, Any]:
    return _object.decode(_few(raw, "chat_template_kwargs"))


def _few(raw: bytes, param: str) -> bytes:
    marks = (b",", b"[", b"{")
    if sum(map(raw.count, marks)) > MAX_VALUES and _values(raw, *marks) > MAX_VALUES:
        raise InvalidRequest(f"{param} has more than {MAX_VALUES} values", param=param)
    return raw


_READERS = {
    "prompt": _prompt,
    "messages": _messages,
    "tools": _tool_list,
    "chat_template_kwargs": _kwargs,
    "tokens": _tokens,
    "pds_resume": _resumed,
}
_STAND_INS = {
    "prompt": b'""',
    "messages": b'[{"role":"user"}]',
    "tools": b"[]",
    "chat_template_kwargs": b"{}",
    "tokens": b"[]",
    "pds_resume": b'{"output_ids":[]}',
}


def _strings(raw: bytes) -> int:
    """How many strings there are at least: an escaped quote is not taken for one."""
    return (raw.count(b'"') - raw.count(b'\\"')) // 2


def _values(raw: bytes, *marks: bytes) -> int:
    """How often `marks` occur outside of strings.

    Slices let other threads have the lock; a string that goes from one into the next stays open.
    """
    count, opened, at = 0, False, 0
    while at < len(raw):
        end = at + FROM
        while raw[end - 1 : end] == b"\\":  # an escape is not cut
            end += 1
        piece = raw[at:end].replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = piece.split(b'"')
        outside = b" ".join(parts[opened::2])
        count += sum(map(outside.count, marks))
        opened ^= len(parts) % 2 == 0
        at = end
    return count
