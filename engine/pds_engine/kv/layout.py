"""How the KV cache lies in memory, and which bytes of one rank belong where on another.

`KvFormat` says what must be equal for two groups to exchange pages; its fingerprint is what the
router pairs on. `KvShard` says which part of it one rank holds, and may differ between the groups.
Pure: no torch, no clock, no transport (hand-over.md).

A rank's pool is page-major:

    attention   [page][layer][k|v][kv_head][token][dim]
    latent      [page][layer][token][latent]                (multi-head latent attention)

so that equal splits are one segment a page, and a slice of layers or heads stays contiguous.
"""

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct, json

FORMAT_VERSION = 1
"""Counts up whenever the bytes of a page change their meaning."""

PAGE_ORDER = "page,layer,kv,head,token,dim"

KvDtype = Literal["float32", "bfloat16", "float16"]
ITEM_BYTES: dict[KvDtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


class KvFormat(Struct, frozen=True, kw_only=True):
    """What two groups must have in common to exchange KV pages."""

    digest: str
    """Of the model's content: other weights give other keys and values."""
    dtype: KvDtype
    page_size: int
    """Tokens of a page."""
    layers: int
    kv_heads: int
    """KV heads of the whole model; 1 where `latent` is set."""
    head_dim: int
    """Elements of one head; 0 where `latent` is set."""
    latent: int = 0
    """Elements a token of multi-head latent attention; 0: plain attention."""
    order: str = PAGE_ORDER
    version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        sizes = (self.page_size, self.layers, self.kv_heads, self.latent or self.head_dim)
        if min(sizes) < 1 or (self.latent and self.kv_heads != 1):
            raise ValueError(f"not a KV format: {self}")

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def sides(self) -> int:
        """Blocks of a layer: K and V, or the one latent."""
        return 1 if self.latent else 2

    @property
    def head_bytes(self) -> int:
        """Bytes of one head of one side of one layer in one page: the smallest unit of a split."""
        return self.page_size * (self.latent or self.head_dim) * self.item_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in all layers and heads."""
        return self.layers * self.sides * self.kv_heads * self.head_bytes // self.page_size


class KvShard(Struct, frozen=True, kw_only=True):
    """The part of every page that one rank holds: layers and KV heads, stop excluded."""

    layer_start: int
    layer_stop: int
    head_start: int
    head_stop: int
    pp_rank: int = 0
    tp_rank: int = 0
    dp_rank: int = 0
    replica: int = 0
    """Among the `replicas` ranks of one tp group that hold the same bytes."""
    replicas: int = 1

    @property
    def layers(self) -> int:
        return self.layer_stop - self.layer_start

    @property
    def heads(self) -> int:
        return self.head_stop - self.head_start

    def page_bytes(self, kv: KvFormat) -> int:
        return self.layers * kv.sides * self.heads * kv.head_bytes


class Segment(NamedTuple):
    """Bytes of one page: `length` from `src` in the source's page to `dst` in the destination's."""

    src: int
    dst: int
    length: int


class ByteRun(NamedTuple):
    """Bytes of a pool, perhaps of many pages. Offsets count from the pool's beginning."""

    src: int
    dst: int
    length: int


def fingerprint(kv: KvFormat) -> str:
    """16 hexadecimal digits; equal exactly when two groups can exchange pages."""
    return hashlib.sha256(json.encode(kv, order="sorted")).hexdigest()[:16]


def shard(
    kv: KvFormat,
    *,
    layers: tuple[int, int],
    pp_rank: int = 0,
    tp_rank: int = 0,
    tp: int = 1,
    dp_rank: int = 0,
) -> KvShard:
    """What rank `tp_rank` of `tp` holds of the layers `layers` (stop excluded).

    Where there are more ranks than KV heads (or a latent, which has no heads), neighbours hold the
    same ones.

    Raises:
        ValueError: the heads do not divide over tp, nor tp over the heads.
    """
    heads = kv.kv_heads
    if heads % tp and tp % heads:
        raise ValueError(f"{heads} KV heads and tp = {tp}: neither divides the other")
    if not 0 <= layers[0] < layers[1] <= kv.layers:
        raise ValueError(f"layers {layers} are not a part of {kv.layers}")
    each, replicas = max(heads // tp, 1), max(tp // heads, 1)
    first = tp_rank // replicas * each
    return KvShard(
        layer_start=layers[0],
        layer_stop=layers[1],
        head_start=first,
        head_stop=first + each,
        pp_rank=pp_rank,
        tp_rank=tp_rank,
        dp_rank=dp_rank,
        replica=tp_rank % replicas,
        replicas=replicas,
    )


def plan_segments(kv: KvFormat, src: KvShard, dst: KvShard) -> tuple[Segment, ...]:
    """What `src` copies into each page of `dst`, in ascending order, neighbours merged.

    Over all ranks of a source group every byte of the destination's page is covered exactly once:
    of replicas, the one whose number is the destination's tp rank modulo replicas sends.
    """
    if dst.tp_rank % src.replicas != src.replica:
        return ()
    layers = range(max(src.layer_start, dst.layer_start), min(src.layer_stop, dst.layer_stop))
    first, last = max(src.head_start, dst.head_start), min(src.head_stop, dst.head_stop)
    if first >= last:
        return ()
    found: list[Segment] = []
    for layer in layers:
        for side in range(kv.sides):
            found.append(
                Segment(
                    _offset(kv, src, layer, side, first),
                    _offset(kv, dst, layer, side, first),
                    (last - first) * kv.head_bytes,
                )
            )
    return tuple(_merged(found))


def plan_runs(
    segments: Sequence[Segment],
    src_pages: Sequence[int],
    dst_pages: Sequence[int],
    src_page_bytes: int,
    dst_page_bytes: int,
) -> list[ByteRun]:
    """The copies that carry `src_pages[i]` into `dst_pages[i]`, merged where both sides go on."""
    if not segments or not src_pages:
        return []
    parts = np.asarray(segments, dtype=np.int64)
    src = np.add.outer(np.asarray(src_pages, dtype=np.int64) * src_page_bytes, parts[:, 0]).ravel()
    dst = np.add.outer(np.asarray(dst_pages, dtype=np.int64) * dst_page_bytes, parts[:, 1]).ravel()
    length = np.tile(parts[:, 2], len(src_pages))
    joins = (src[1:] == src[:-1] + length[:-1]) & (dst[1:] == dst[:-1] + length[:-1])
    starts = np.flatnonzero(np.concatenate(([True], ~joins)))
    totals = np.add.reduceat(length, starts)
    return list(map(ByteRun, src[starts].tolist(), dst[starts].tolist(), totals.tolist()))


def _offset(kv: KvFormat, part: KvShard, layer: int, side: int, head: int) -> int:
    block = (layer - part.layer_start) * kv.sides + side
    return (block * part.heads + head - part.head_start) * kv.head_bytes


def _merged(segments: list[Segment]) -> list[Segment]:
    merged: list[Segment] = []
    for part in segments:
        if merged:
            last = merged[-1]
            if (last.src + last.length, last.dst + last.length) == (part.src, part.dst):
                merged[-1] = Segment(last.src, last.dst, last.length + part.length)
                continue
        merged.append(part)
    return merged
