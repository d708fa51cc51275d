"""What P's and D's transfer threads say to each other on a channel, and how it is framed.

A frame is a head (length of the body, bytes of data that follow it), a tagged MessagePack body, and
raw data: page bytes on their way, which are read straight into their place.
"""

import struct
from typing import Final

import numpy as np
from msgspec import DecodeError, Struct, ValidationError
from msgspec.msgpack import Decoder, Encoder

from pds_engine.config import KvBackend
from pds_engine.errors import ProtocolError
from pds_engine.kv.layout import ByteRun

HEAD: Final = struct.Struct("!II")
MAX_BODY: Final = 1 << 20
MAX_DATA: Final = 64 << 20


class Frame(Struct, frozen=True, tag=True, array_like=True, kw_only=True):
    """Base of all frames."""


class Open(Frame, frozen=True, kw_only=True):
    """P → D: may I write pages of this transfer, by this backend?"""

    transfer: str
    epoch: int
    backend: KvBackend
    detail: bytes = b""
    """What the backend's other half needs to know of P's side (Described.open)."""


class Write(Frame, frozen=True, kw_only=True):
    """P → D: the data that follows belongs to `runs`, in their order. Answered by Ack or Nack."""

    transfer: str
    epoch: int
    ticket: int
    runs: bytes


class Copy(Frame, frozen=True, kw_only=True):
    """P → D: take `runs` from my shared pages. Answered by Ack or Nack."""

    transfer: str
    epoch: int
    ticket: int
    runs: bytes


class Posting(Frame, frozen=True, kw_only=True):
    """P → D: one-sided writes are under way, so make progress for them; or none is any more."""

    active: bool


class Close(Frame, frozen=True, kw_only=True):
    """P → D: nothing more comes, and nothing is under way."""

    transfer: str
    epoch: int


class Opened(Frame, frozen=True, kw_only=True):
    """D → P: the pages are held for you."""

    transfer: str
    epoch: int


class OpenRefused(Frame, frozen=True, kw_only=True, tag="Refused"):
    """D → P: not, or no longer, expected; nothing of it will be placed."""

    transfer: str
    epoch: int
    message: str


class Ack(Frame, frozen=True, kw_only=True):
    """D → P: these bytes are in their pages."""

    ticket: int


class Nack(Frame, frozen=True, kw_only=True):
    """D → P: these bytes were thrown away."""

    ticket: int
    message: str


AnyFrame = Open | Write | Copy | Posting | Close | Opened | OpenRefused | Ack | Nack

_encoder = Encoder()
_decoder: Decoder[AnyFrame] = Decoder(AnyFrame)


def encode(frame: AnyFrame, data_bytes: int = 0) -> bytes:
    """Head and body of a frame that `data_bytes` of data follow."""
    body = _encoder.encode(frame)
    return HEAD.pack(len(body), data_bytes) + body


def decode(body: bytes) -> AnyFrame:
    """Raises ProtocolError when `body` is no frame."""
    try:
        return _decoder.decode(body)
    except (DecodeError, ValidationError) as error:
        raise ProtocolError(f"an unreadable frame: {error}") from error


def pack_runs(runs: list[ByteRun]) -> bytes:
    """24 bytes a run: source, destination, length as little-endian 64-bit integers."""
    return np.asarray(runs, dtype="<i8").tobytes()


def unpack_runs(data: bytes) -> list[ByteRun]:
    """The inverse of `pack_runs`.

    Raises:
        ProtocolError: not whole runs.
    """
    if len(data) % 24:
        raise ProtocolError(f"{len(data)} bytes are not whole runs")
    rows = np.frombuffer(data, dtype="<i8").reshape(-1, 3)
    return [ByteRun(*row) for row in rows.tolist()]
