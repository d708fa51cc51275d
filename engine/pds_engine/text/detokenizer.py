"""Text from a stream of bytes: a character is released when its last byte has come.

Tokens of a byte-level vocabulary end anywhere in a character. What is not UTF-8 becomes U+FFFD, one
for each maximal part that could have begun a character, as the Unicode standard recommends (§3.9)
and as decoding all bytes at once does.
"""

import codecs


def advance(partial: bytes, piece: bytes) -> tuple[str, bytes]:
    """The text that `piece` completes, and the at most three bytes of a character begun."""
    data = partial + piece
    text, used = codecs.utf_8_decode(data, "replace", False)
    return text, data[used:]


def flush(partial: bytes) -> str:
    """The text of a character that nothing completes any more."""
    return partial.decode(errors="replace")
