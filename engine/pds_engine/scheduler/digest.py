"""What P and D compare before a hand-over: that both hold the same tokens."""

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b


def token_digest(ids: Sequence[int]) -> bytes:
    """16 bytes of BLAKE2b over the ids as little-endian 32-bit integers."""
    words = array("I", ids)
    if sys.byteorder == "big":
        words.byteswap()
    return blake2b(words.tobytes(), digest_size=16).digest()
