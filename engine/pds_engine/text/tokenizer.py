"""A model's tokenizer, from the files of its folder (the Hugging Face layout)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers

from pds_engine.errors import ConfigError
from pds_engine.text.template import ChatTemplate

REPLACEMENT = "\ufffd"
_SHORT = 1024


class Tokenizer:
    """Ids from text, bytes from ids, and what the folder says about special tokens.

    Attributes:
        eos_ids: ids that end an output, all that the folder names.
        special_ids: ids whose text is left out of answers.
        vocabulary: ids below it are valid inputs: the model's embedding has so many rows, however
            many tokens the tokenizer knows.
        longest: bytes of the longest token; n tokens hold at most n * longest bytes of text.
        settings: tokenizer_config.json, as read.
        template: the chat template, or None for a model without one.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ConfigError when tokenizer.json is missing or a file is not what it should be."""
        path = folder / "tokenizer.json"
        try:
            self._inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the binding raises bare Exception
            raise ConfigError(
                f"cannot read the tokenizer {path}: {error}",
                hint="model.path must hold a tokenizer.json of the Hugging Face layout",
            ) from error
        self._inner.no_truncation()
        self._inner.no_padding()
        # The whole vocabulary decodes by one rule, which the decoder's description names.
        self._byte_level = '"ByteLevel"' in json.dumps(_read(path).get("decoder"))
        self._pieces: dict[int, bytes] = {}
        self.settings = _read(folder / "tokenizer_config.json")
        _check_added(self._inner, self.settings)
        model = _read(folder / "config.json")
        generation = _read(folder / "generation_config.json")
        tokens = self._inner.get_vocab(with_added_tokens=True)
        self.longest = max((len(token.encode()) for token in tokens), default=1)
        self.vocabulary = model.get("vocab_size") or max(tokens.values(), default=0) + 1
        added = self._inner.get_added_tokens_decoder()
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self.eos_ids = tuple(
            sorted(
                {
                    *_ids(generation.get("eos_token_id")),
                    *_ids(model.get("eos_token_id")),
                    *_ids(self._inner.token_to_id(self.special("eos_token"))),
                }
            )
        )
        self.template = _template(folder, self.settings)

    def special(self, name: str) -> str:
        """The text of a named special token ("bos_token", "eos_token", …), or ""."""
        value = self.settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        return text if isinstance(text, str) else ""

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of `text`; with `special`, those that the tokenizer adds by itself (bos) too."""
        ids: list[int] = self.encoding(text, special=special).ids
        return ids

    def encoding(self, text: str, *, special: bool = True) -> tokenizers.Encoding:
        """`encode`, before a list is made of it: its length is known already.

        The library's call for a batch leaves the interpreter's lock to other threads meanwhile;
        that for one text holds it. A short text is done before another thread has woken up.
        """
        if len(text) <= _SHORT:
            return self._inner.encode(text, add_special_tokens=special)
        (found,) = self._inner.encode_batch_fast([text], add_special_tokens=special)
        return found

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        pieces = (self.piece(id) for id in ids if not (skip_special and id in self.special_ids))
        return b"".join(pieces).decode(errors="replace")

    def token(self, id: int) -> str:
        """The vocabulary's own spelling of an id ("Ġthe"), "" for an id it does not have."""
        return self._inner.id_to_token(id) or ""

    def piece(self, id: int) -> bytes:
        """The bytes that a token adds to the text; b"" for an id without one."""
        found = self._pieces.get(id)
        if found is None:
            found = self._pieces[id] = self._piece(self.token(id))
        return found

    def _piece(self, token: str) -> bytes:
        if self._byte_level:
            try:
                return bytes(_BYTES[character] for character in token)
            except KeyError:  # an added token, spelt as it reads
                return token.encode()
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])  # SentencePiece's byte fallback
        return token.replace("\u2581", " ").encode()


def _byte_characters() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the rest from U+0100 on in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + rank): byte for rank, byte in enumerate(others)
    }


_BYTES = _byte_characters()


def _read(path: Path) -> dict[str, Any]:
    """The JSON object of a file that may be missing."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(_text(path))
    except ValueError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} is not a JSON object")
    return value


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error}") from error


def _ids(value: object) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [id for id in values if isinstance(id, int)]


def _template(folder: Path, settings: dict[str, Any]) -> ChatTemplate | None:
    """As transformers chooses: files before settings. Of several named templates, `tool_use` is for
    messages with tools, and "default" for all others."""
    source: Any = settings.get("chat_template")
    named: dict[str, Any] = {"default": source}
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
    file = folder / "chat_template.jinja"
    if file.is_file():
        named = {"default": _text(file)}
        for other in (folder / "additional_chat_templates").glob("*.jinja"):
            named[other.stem] = _text(other)
    default, with_tools = named.get("default"), named.get("tool_use")
    return ChatTemplate(default, with_tools) if isinstance(default, str) else None


def _check_added(inner: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    """transformers adds tokens that only tokenizer_config.json names, and cuts text by them.

    Raises:
        ConfigError: names the first that tokenizer.json does not have.
    """
    extra = settings.get("extra_special_tokens") or []
    named = {
        "added_tokens_decoder": (settings.get("added_tokens_decoder") or {}).values(),
        "additional_special_tokens": settings.get("additional_special_tokens") or [],
        "extra_special_tokens": extra.values() if isinstance(extra, dict) else extra,
    }
    for key, tokens in named.items():
        for token in tokens:
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str) and inner.token_to_id(content) is None:
                raise ConfigError(
                    f"tokenizer_config.json: {key} has the token {content!r}, which tokenizer.json"
                    " does not know",
                    hint="save the tokenizer with transformers' save_pretrained, which writes both",
                )
