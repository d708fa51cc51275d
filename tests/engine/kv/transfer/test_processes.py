"""Whole hand-overs between two processes, every byte compared, over shapes and splits."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pds_engine.kv.layout import KvFormat, KvShard, shard
from pds_engine.messages import (
    CloseTransfer,
    Expect,
    Forget,
    Forgotten,
    OpenTransfer,
    Push,
    PushDone,
    TransferClosed,
)

PAGES = 8


@st.composite
def formats(draw: st.DrawFn) -> KvFormat:
    common = {"digest": "d", "page_size": 16, "layers": draw(st.integers(1, 4))}
    if draw(st.booleans()):
        return KvFormat(
            dtype="bfloat16", kv_heads=draw(st.sampled_from([1, 2, 4])), head_dim=64, **common
        )
    return KvFormat(dtype="float32", kv_heads=1, head_dim=0, latent=72, **common)


@st.composite
def splits(draw: st.DrawFn, kv: KvFormat, widest: int) -> list[KvShard]:
    cut = draw(st.integers(0, kv.layers - 1))
    bounds = sorted({0, cut, kv.layers})
    tp = draw(st.sampled_from([tp for tp in (1, 2, 4) if tp <= widest]))
    return [
        shard(kv, layers=(first, last), pp_rank=stage, tp_rank=rank, tp=tp)
        for stage, (first, last) in enumerate(pairwise(bounds))
        for rank in range(tp)
    ]


def pool_of(kv: KvFormat, part: KvShard, whole: np.ndarray) -> np.ndarray:
    """What a rank holds of the whole model's pages [pages, layers, sides, heads, bytes]."""
    return whole[:, part.layer_start : part.layer_stop, :, part.head_start : part.head_stop]


def hand_over(data: st.DataObject, groups, backend: str, widest: int = 4) -> None:
    prefill, decode = groups
    kv = data.draw(formats())
    sources, targets = data.draw(splits(kv, widest)), data.draw(splits(kv, widest))
    count = data.draw(st.integers(1, PAGES))
    src = tuple(data.draw(st.permutations(range(PAGES)))[:count])
    dst = tuple(data.draw(st.permutations(range(PAGES)))[:count])
    middle = data.draw(st.integers(0, count))
    shape = (PAGES, kv.layers, kv.sides, kv.kv_heads, kv.head_bytes)
    whole = np.random.default_rng(count).integers(1, 256, shape, dtype=np.uint8)

    prefill.build(kv, sources, PAGES, [backend])
    peers = decode.build(kv, targets, PAGES, [backend])
    for rank, part in enumerate(sources):
        prefill.load(rank, pool_of(kv, part, whole).tobytes())
    decode.order("expect", Expect(transfer="t", epoch=3, pages=dst))
    prefill.order("open", OpenTransfer(transfer="t", epoch=3, peers=peers))
    for pages, last in ((slice(0, middle), False), (slice(middle, count), True)):
        order = Push(transfer="t", src_pages=src[pages], dst_pages=dst[pages], last=last)
        prefill.order("push", order)
    done = prefill.events()
    assert all(isinstance(event, PushDone) for event in done), done
    expected = np.zeros_like(whole)
    expected[list(dst)] = whole[list(src)]
    for rank, part in enumerate(targets):
        assert decode.content(rank) == pool_of(kv, part, expected).tobytes()
    assert sum(event.bytes for event in done) == count * sum(p.page_bytes(kv) for p in targets)

    prefill.order("close", CloseTransfer(transfer="t"))
    assert prefill.events() == [
        TransferClosed(transfer="t", rank=rank) for rank in range(len(sources))
    ]
    decode.order("forget", Forget(transfer="t", epoch=3))
    assert all(isinstance(event, Forgotten) for event in decode.events())


def thorough(examples: int):
    """No shrinking, which would run whole hand-overs for minutes; what was drawn is printed."""
    return settings(
        max_examples=examples,
        deadline=None,
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@thorough(20)
@given(data=st.data())
def test_hand_over_by_tcp(groups, data: st.DataObject) -> None:
    hand_over(data, groups, "tcp")


@thorough(8)
@given(data=st.data())
def test_hand_over_by_shared_memory(groups, data: st.DataObject) -> None:
    hand_over(data, groups, "shm")


@thorough(3)
@given(data=st.data())
def test_hand_over_by_nixl(groups, data: st.DataObject) -> None:
    pytest.importorskip("nixl", reason="pip install nixl")
    hand_over(data, groups, "nixl", widest=2)


@pytest.mark.parametrize(("p", "d", "sent"), [(4, 1, [6, 0, 0, 0]), (4, 2, [6, 6, 0, 0])])
def test_replicas_of_a_latent_send_one_copy_to_each_rank(groups, backend, p, d, sent) -> None:
    """What each rank of P sends, in pages: P's ranks all have what each rank of D is to have."""
    prefill, decode = groups
    kv = KvFormat(
        digest="d", page_size=16, layers=3, dtype="bfloat16", kv_heads=1, head_dim=0, latent=72
    )
    sources, targets = (
        [shard(kv, layers=(0, 3), tp_rank=rank, tp=tp) for rank in range(tp)] for tp in (p, d)
    )
    whole = np.random.default_rng(1).integers(
        1, 256, (PAGES, kv.layers, 1, 1, kv.head_bytes), dtype=np.uint8
    )
    prefill.build(kv, sources, PAGES, [backend])
    peers = decode.build(kv, targets, PAGES, [backend])
    for rank in range(p):
        prefill.load(rank, whole.tobytes())
    src, dst = (7, 2, 5, 1, 0, 3), (1, 6, 0, 4, 7, 2)
    decode.order("expect", Expect(transfer="t", epoch=3, pages=dst))
    prefill.order("open", OpenTransfer(transfer="t", epoch=3, peers=peers))
    prefill.order("push", Push(transfer="t", src_pages=src, dst_pages=dst, last=True))
    done = prefill.events()
    page = 3 * 16 * 72 * 2
    assert [event.bytes for event in done] == [pages * page for pages in sent]
    expected = np.zeros_like(whole)
    expected[list(dst)] = whole[list(src)]
    assert [decode.content(rank) for rank in range(d)] == [expected.tobytes()] * d
