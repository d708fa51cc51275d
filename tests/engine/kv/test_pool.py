import mmap
import os
import threading
from pathlib import Path

import pytest
import torch
from pds_engine.kv import pool as pool_module
from pds_engine.kv.layout import KvFormat, shard
from pds_engine.kv.pool import KvPool

FORMAT = KvFormat(digest="d", dtype="bfloat16", page_size=4, layers=3, kv_heads=2, head_dim=8)
LATENT = KvFormat(
    digest="d", dtype="float32", page_size=4, layers=3, kv_heads=1, head_dim=0, latent=6
)


@pytest.mark.parametrize("shared", [False, True])
def test_the_tensor_and_the_bytes_are_one_memory(shared: bool) -> None:
    pool = KvPool(FORMAT, shard(FORMAT, layers=(1, 3)), 5, shared=shared)
    assert pool.data.shape == (5, 2, 2, 2, 4, 8)
    assert pool.data.is_contiguous()
    assert pool.bytes_per_page == 2 * 2 * 2 * 4 * 8 * 2
    assert pool.memory is not None
    assert pool.memory.nbytes == pool.bytes == 5 * pool.bytes_per_page
    assert not any(pool.memory)
    pool.data[3].fill_(1.0)
    start = 3 * pool.bytes_per_page
    one = torch.ones(1, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    assert pool.memory[start : start + pool.bytes_per_page] == one * (pool.bytes_per_page // 2)
    assert not any(pool.memory[:start])


def test_a_layers_views_are_of_the_pages() -> None:
    pool = KvPool(FORMAT, shard(FORMAT, layers=(0, 3)), 4)
    k, v = pool.layer(1)
    assert k.shape == v.shape == (4, 2, 4, 8)
    k[2, 1, 3] = 5.0
    v[2, 1, 3] = 7.0
    assert pool.data[2, 1, 0, 1, 3].tolist() == [5.0] * 8
    assert pool.data[2, 1, 1, 1, 3].tolist() == [7.0] * 8
    assert pool.data.sum() == 8 * 12


def test_the_latent_of_a_layer() -> None:
    pool = KvPool(LATENT, shard(LATENT, layers=(0, 3)), 4)
    pool.layer(2)[0][3, 1] = 2.0
    assert pool.data.shape == (4, 3, 4, 6)
    assert pool.data[3, 2, 1].tolist() == [2.0] * 6


def test_a_shared_pool_can_be_mapped_by_its_file() -> None:
    pool = KvPool(FORMAT, shard(FORMAT, layers=(0, 3)), 2, shared=True)
    assert pool.memory_file is not None
    pool.data.fill_(1.0)
    assert pool.memory is not None
    assert os.pread(pool.memory_file, pool.bytes, 0) == bytes(pool.memory)


def test_a_large_pool_is_there_soon_and_keeps_what_is_written_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "_AT_ONCE", 1 << 20)
    monkeypatch.setattr(pool_module, "_PIECE", 1 << 20)
    kv = shard(FORMAT, layers=(0, 3))
    pool = KvPool(FORMAT, kv, (24 << 20) // kv.page_bytes(FORMAT))
    pool.data.fill_(3)
    for thread in threading.enumerate():
        if thread.name == "kv-pages":
            thread.join()
    assert pool.data.eq(3).all()


def test_pages_of_the_kernel_come_without_being_touched() -> None:
    region = mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    before = resident()
    pool_module._populate(memoryview(region), 0)
    assert resident() - before >= 7 << 20


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
