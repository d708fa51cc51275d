"""Digests of token ids."""

import sys
from array import array
from collections.abc import Sequence
from hashlib import blake2b


def words(ids: Sequence[int]) -> bytes:
    """The ids as little-endian 32-bit integers."""
    data = array("I", ids)
    if sys.byteorder == "big":
        data.byteswap()
    return data.tobytes()


def token_digest(ids: Sequence[int]) -> bytes:
    """16 bytes of BLAKE2b: what P and D compare before a hand-over, that both hold the same."""
    return blake2b(words(ids), digest_size=16).digest()
