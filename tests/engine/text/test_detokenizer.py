from pathlib import Path

import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from pds_engine.text import detokenizer
from pds_engine.text.tokenizer import Tokenizer

TINY = Path(__file__).parents[3] / "examples" / "models" / "tiny"
OURS = Tokenizer(TINY)
THEIRS = tokenizers.Tokenizer.from_file(str(TINY / "tokenizer.json"))


def streamed(pieces: list[bytes]) -> list[str]:
    out, partial = [], b""
    for piece in pieces:
        text, partial = detokenizer.advance(partial, piece)
        assert len(partial) < 4
        out.append(text)
    return [*out, detokenizer.flush(partial)]


def test_a_character_waits_for_its_last_byte():
    assert streamed([b"a\xf0", b"\x9f", b"\x98", b"\x80b"]) == ["a", "", "", "😀b", ""]


def test_what_is_no_character_is_replaced():
    assert streamed([b"\xff", b"\xe2\x82", b"x", b"\xe2"]) == [
        "\ufffd",
        "",
        "\ufffdx",
        "",
        "\ufffd",
    ]


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=5), max_size=20))
def test_any_cut_of_any_bytes_reads_as_the_whole(pieces: list[bytes]):
    assert "".join(streamed(pieces)) == b"".join(pieces).decode(errors="replace")


@settings(max_examples=100)
@given(st.lists(st.integers(0, THEIRS.get_vocab_size() - 1), max_size=40))
def test_streaming_reads_as_the_tokenizer_decodes_at_once(ids: list[int]):
    text = "".join(streamed([OURS.piece(id) for id in ids]))
    assert text == THEIRS.decode(ids, skip_special_tokens=False)


@settings(max_examples=60)
@given(st.text(max_size=40))
def test_any_text_survives(text: str):
    assert "".join(streamed([OURS.piece(id) for id in OURS.encode(text)])) == text
