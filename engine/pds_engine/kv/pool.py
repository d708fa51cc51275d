"""One rank's KV pages: a single page-major allocation that attention reads and peers write into."""

import ctypes
import mmap
import os
from threading import Thread
from typing import Final

import torch

from pds_engine.kv.layout import KvFormat, KvShard

_DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_AT_ONCE = 256 << 20
"""Bytes of a pool that are there before it is used."""
_PIECE = 16 << 20
_MADV_POPULATE_WRITE = 23
"""madvise(2): prefault, and leave contents as they are."""


class KvPool:
    """`pages` pages of one rank's shard, zeroed and prefaulted: on a CPU what is above 256 MiB by a
    thread of its own, so that the size of a pool delays no start.

    `data` has the shape [pages, layers, 2, kv_heads, page_size, head_dim], or [pages, layers,
    page_size, latent] for latent attention, and is contiguous. On a CPU it lies in one anonymous
    mapping (`memory`), or with `shared` in a memory file that another process of this user can map.
    """

    def __init__(
        self,
        kv: KvFormat,
        shard: KvShard,
        pages: int,
        device: str = "cpu",
        *,
        shared: bool = False,
    ) -> None:
        self.format = kv
        self.shard = shard
        self.pages = pages
        self.device = torch.device(device)
        self.bytes_per_page = shard.page_bytes(kv)
        self.bytes = pages * self.bytes_per_page
        self.memory: memoryview | None = None
        """The pages as writable bytes; None where they are not in host memory."""
        self.memory_file: int | None = None
        """With `shared`: the descriptor of the memory file."""
        dtype = _DTYPES[kv.dtype]
        if self.device.type == "cpu":
            self.memory = self._map(shared)
            flat = torch.frombuffer(self.memory, dtype=dtype)
        else:
            flat = torch.zeros(self.bytes // kv.item_bytes, dtype=dtype, device=self.device)
        inner = (
            (kv.page_size, kv.latent) if kv.latent else (2, shard.heads, kv.page_size, kv.head_dim)
        )
        self.data = flat.view(pages, shard.layers, *inner)

    @property
    def address(self) -> int:
        """Of the first byte of page 0."""
        return self.data.data_ptr()

    def layer(self, index: int) -> tuple[torch.Tensor, ...]:
        """The shard's `index`-th layer as its attention takes it: views of K and of V, [pages,
        kv_heads, page_size, head_dim], or one of the latent, [pages, page_size, latent]."""
        part = self.data[:, index]
        return (part,) if self.format.latent else (part[:, 0], part[:, 1])

    def _map(self, shared: bool) -> memoryview:
        # Populated at once: a first touch in the middle of a hand-over costs a fault a page, and
        # registration pins what is there.
        populate = getattr(mmap, "MAP_POPULATE", 0)
        if shared:
            self.memory_file = os.memfd_create("pds-kv", os.MFD_CLOEXEC)
            os.ftruncate(self.memory_file, self.bytes)
            return memoryview(
                mmap.mmap(self.memory_file, self.bytes, flags=mmap.MAP_SHARED | populate)
            )
        region = mmap.mmap(-1, self.bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region.madvise(mmap.MADV_HUGEPAGE)
        view = memoryview(region)
        # It is all zeros: a byte of each of the kernel's pages brings them here
        torch.frombuffer(view, dtype=torch.uint8)[: _AT_ONCE : mmap.PAGESIZE].zero_()
        if self.bytes > _AT_ONCE:
            Thread(target=_populate, args=(view, _AT_ONCE), name="kv-pages", daemon=True).start()
        return view


def _populate(view: memoryview, begin: int) -> None:
    """Bring the kernel's pages of `view` from `begin` on, whatever is in them by then. A kernel
    before 5.14 cannot: it brings each page when it is first touched."""
    madvise = ctypes.CDLL(None).madvise  # mmap's own holds Python's lock meanwhile
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    address = torch.frombuffer(view, dtype=torch.uint8).data_ptr()
    for at in range(begin, len(view), _PIECE):
        length = min(_PIECE, len(view) - at)
        if madvise(address + at, length, _MADV_POPULATE_WRITE):
            return
