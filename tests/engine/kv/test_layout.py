import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pds_engine.kv.layout import (
    ByteRun,
    KvFormat,
    KvShard,
    Segment,
    fingerprint,
    plan_runs,
    plan_segments,
    shard,
)


def attention(layers: int, heads: int) -> KvFormat:
    return KvFormat(
        digest="d", dtype="bfloat16", page_size=2, layers=layers, kv_heads=heads, head_dim=4
    )


def latent(layers: int) -> KvFormat:
    return KvFormat(
        digest="d", dtype="float32", page_size=2, layers=layers, kv_heads=1, head_dim=0, latent=3
    )


@st.composite
def formats(draw: st.DrawFn) -> KvFormat:
    layers = draw(st.integers(1, 6))
    return draw(st.sampled_from([attention(layers, h) for h in (1, 2, 4, 6, 8)] + [latent(layers)]))


@st.composite
def groups(draw: st.DrawFn, kv: KvFormat) -> list[KvShard]:
    """All ranks of a group: any cut of the layers into stages, any tp that divides."""
    cuts = sorted(draw(st.sets(st.integers(1, kv.layers - 1)))) if kv.layers > 1 else []
    bounds = [0, *cuts, kv.layers]
    sizes = (1, 2, 3, 4, 6, 8, 16)
    tp = draw(st.sampled_from([t for t in sizes if not (kv.kv_heads % t and t % kv.kv_heads)]))
    return [
        shard(kv, layers=(bounds[i], bounds[i + 1]), pp_rank=i, tp_rank=t, tp=tp)
        for i in range(len(bounds) - 1)
        for t in range(tp)
    ]


def page_of(kv: KvFormat, part: KvShard) -> np.ndarray:
    """A page whose every byte says where it belongs in the whole model."""
    whole = np.arange(kv.layers * kv.sides * kv.kv_heads * kv.head_bytes)
    blocks = whole.reshape(kv.layers, kv.sides, kv.kv_heads, kv.head_bytes)
    return blocks[part.layer_start : part.layer_stop, :, part.head_start : part.head_stop].ravel()


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_every_destination_byte_is_written_exactly_once(data: st.DataObject) -> None:
    kv = data.draw(formats())
    sources, targets = data.draw(groups(kv)), data.draw(groups(kv))
    for dst in targets:
        page = np.full(dst.page_bytes(kv), -1)
        for src in sources:
            content = page_of(kv, src)
            for part in plan_segments(kv, src, dst):
                here = page[part.dst : part.dst + part.length]
                assert (here == -1).all()
                here[:] = content[part.src : part.src + part.length]
        np.testing.assert_array_equal(page, page_of(kv, dst))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_replicas_share_the_destinations(data: st.DataObject) -> None:
    kv = data.draw(formats())
    sources, targets = data.draw(groups(kv)), data.draw(groups(kv))
    for dst in targets:
        for src in sources:
            if plan_segments(kv, src, dst):
                assert dst.tp_rank % src.replicas == src.replica


def test_equal_shards_are_one_segment() -> None:
    kv = attention(4, 4)
    same = shard(kv, layers=(0, 4))
    assert plan_segments(kv, same, same) == (Segment(0, 0, same.page_bytes(kv)),)


def test_a_stage_of_the_destination_is_one_slice_of_layers() -> None:
    kv = attention(4, 2)
    whole, late = shard(kv, layers=(0, 4)), shard(kv, layers=(3, 4), pp_rank=1)
    layer = 2 * 2 * kv.head_bytes
    assert plan_segments(kv, whole, late) == (Segment(3 * layer, 0, layer),)
    assert plan_segments(kv, late, whole) == (Segment(0, 3 * layer, layer),)


def test_a_split_of_heads_is_one_segment_a_side() -> None:
    kv = attention(1, 4)
    whole, second = shard(kv, layers=(0, 1)), shard(kv, layers=(0, 1), tp_rank=1, tp=2)
    head = kv.head_bytes
    assert plan_segments(kv, whole, second) == (
        Segment(2 * head, 0, 2 * head),
        Segment(6 * head, 2 * head, 2 * head),
    )


def test_of_replicas_only_one_sends() -> None:
    kv = attention(1, 2)
    sources = [shard(kv, layers=(0, 1), tp_rank=t, tp=4) for t in range(4)]
    targets = [shard(kv, layers=(0, 1), tp_rank=t, tp=2) for t in range(2)]
    sends = [[bool(plan_segments(kv, s, d)) for s in sources] for d in targets]
    assert sends == [[True, False, False, False], [False, False, False, True]]


@pytest.mark.parametrize(("heads", "tp"), [(4, 3), (6, 4), (3, 2)])
def test_heads_that_do_not_divide_are_refused(heads: int, tp: int) -> None:
    with pytest.raises(ValueError, match="neither divides"):
        shard(attention(1, heads), layers=(0, 1), tp=tp)


@pytest.mark.parametrize("layers", [(0, 0), (1, 1), (0, 5), (-1, 2)])
def test_layers_outside_the_model_are_refused(layers: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="are not a part of"):
        shard(attention(4, 1), layers=layers)


def test_a_format_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="not a KV format"):
        attention(0, 2)


def test_runs_merge_across_pages_that_are_neighbours_on_both_sides() -> None:
    whole = (Segment(0, 0, 10),)
    assert plan_runs(whole, [3, 4, 5, 9], [0, 1, 7, 8], 10, 10) == [
        ByteRun(30, 0, 20),
        ByteRun(50, 70, 10),
        ByteRun(90, 80, 10),
    ]


def test_runs_of_unequal_pages() -> None:
    parts = (Segment(0, 5, 2), Segment(4, 7, 2))
    assert plan_runs(parts, [1, 0], [2, 3], 6, 9) == [
        ByteRun(6, 23, 2),
        ByteRun(10, 25, 2),
        ByteRun(0, 32, 2),
        ByteRun(4, 34, 2),
    ]


def test_nothing_to_copy() -> None:
    assert plan_runs((), [1], [1], 4, 4) == []
    assert plan_runs((Segment(0, 0, 4),), [], [], 4, 4) == []


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_runs_carry_whole_pools(data: st.DataObject) -> None:
    kv = data.draw(formats())
    sources, targets = data.draw(groups(kv)), data.draw(groups(kv))
    pages = data.draw(st.lists(st.integers(0, 7), unique=True, max_size=6))
    homes = data.draw(st.permutations(range(8)))[: len(pages)]
    for dst in targets:
        pool = np.full(8 * dst.page_bytes(kv), -1)
        for src in sources:
            content = np.concatenate([page_of(kv, src) + 10**6 * page for page in range(8)])
            parts = plan_segments(kv, src, dst)
            for run in plan_runs(parts, pages, homes, src.page_bytes(kv), dst.page_bytes(kv)):
                pool[run.dst : run.dst + run.length] = content[run.src : run.src + run.length]
        expected = np.full((8, dst.page_bytes(kv)), -1)
        for page, home in zip(pages, homes, strict=True):
            expected[home] = page_of(kv, dst) + 10**6 * page
        np.testing.assert_array_equal(pool, expected.ravel())


def test_the_fingerprint_is_of_what_must_be_equal() -> None:
    kv = attention(4, 2)
    assert fingerprint(kv) == fingerprint(attention(4, 2))
    assert len(fingerprint(kv)) == 16
    others = [attention(5, 2), attention(4, 1), latent(4)]
    assert len({fingerprint(other) for other in [kv, *others]}) == 4


def held(kv: KvFormat) -> KvShard:
    """What one rank has of a whole model."""
    return shard(kv, layers=(0, kv.layers))


def test_bytes_of_a_token_of_deepseek_v3() -> None:
    """(kv_rank + rope_dim) · layers · bytes, beside its 128 heads with keys and values of their own
    (keys of 128 + 64, values of 128), and beside 8 KV heads of 128."""
    common = {"digest": "d", "page_size": 64, "layers": 61}
    latent = KvFormat(dtype="bfloat16", kv_heads=1, head_dim=0, latent=512 + 64, **common)
    shared = KvFormat(dtype="bfloat16", kv_heads=8, head_dim=128, **common)
    own = 128 * (128 + 64 + 128) * 61 * 2
    found = [held(kv).page_bytes(kv) // 64 for kv in (latent, shared)]
    assert found == [(512 + 64) * 61 * 2, 8 * 128 * 2 * 61 * 2] == [70_272, 249_856]
    assert own // found[0] == 71


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_every_rank_of_a_tp_group_has_the_whole_latent(tp: int) -> None:
    kv = latent(4)
    ranks = [shard(kv, layers=(0, 4), tp_rank=rank, tp=tp) for rank in range(tp)]
    assert {rank.page_bytes(kv) for rank in ranks} == {held(kv).page_bytes(kv)}
    assert [(rank.replica, rank.replicas) for rank in ranks] == [(rank, tp) for rank in range(tp)]


@pytest.mark.parametrize(
    ("p", "d", "senders"),
    [
        (4, 1, {0: [0]}),
        (1, 4, {0: [0, 1, 2, 3]}),
        (4, 2, {0: [0], 1: [1]}),
        (2, 4, {0: [0, 2], 1: [1, 3]}),
    ],
)
def test_one_of_the_replicas_sends_the_latent(
    p: int, d: int, senders: dict[int, list[int]]
) -> None:
    """Whom each rank of P sends it: each rank of D has it once, in one piece a page."""
    kv = latent(4)
    found: dict[int, list[int]] = {}
    for src in (shard(kv, layers=(0, 4), tp_rank=rank, tp=p) for rank in range(p)):
        for dst in (shard(kv, layers=(0, 4), tp_rank=rank, tp=d) for rank in range(d)):
            if parts := plan_segments(kv, src, dst):
                assert parts == (Segment(0, 0, dst.page_bytes(kv)),)
                found.setdefault(src.tp_rank, []).append(dst.tp_rank)
    assert found == senders
