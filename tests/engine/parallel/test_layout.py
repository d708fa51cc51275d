"""How layers are split over stages."""

from dataclasses import replace
from pathlib import Path

import pytest
from pds_engine.config import ParallelConfig
from pds_engine.models.registry import read_spec
from pds_engine.parallel.balance import balanced, cut
from pds_engine.parallel.layout import Numbering, RankPlace, part
from pds_engine.spec import DenseSpec, ExpertsSpec, GateSpec, LayerSpec

TINY = read_spec(Path(__file__).parents[3] / "examples" / "models" / "tiny")
"""4 layers of 344,064 parameters each, with an embedding and a head of 196,608."""
LAYER = TINY.layers[0]
LARGE = replace(
    TINY,
    vocab=151936,
    hidden=1024,
    layers=28
    * (
        LayerSpec(
            attention=replace(LAYER.attention, heads=16, kv_heads=8, head_dim=128),
            feed=DenseSpec(columns=3072),
        ),
    ),
)
"""As Qwen3 0.6B: the head weighs as much as ten layers."""


@pytest.mark.parametrize(
    ("spec", "role", "stages", "layers"),
    [
        (TINY, "unified", 1, (4,)),
        (TINY, "prefill", 2, (2, 2)),
        (TINY, "decode", 3, (2, 1, 1)),
        (TINY, "decode", 4, (1, 1, 1, 1)),
        (replace(TINY, layers=5 * (LAYER,)), "decode", 2, (3, 2)),
        (LARGE, "prefill", 2, (14, 14)),
        (LARGE, "unified", 3, (10, 9, 9)),
        (LARGE, "decode", 2, (19, 9)),
        (LARGE, "decode", 3, (13, 12, 3)),
        (replace(LARGE, vocab=8), "decode", 4, (7, 7, 7, 7)),
    ],
)
def test_the_largest_stage_is_as_small_as_can_be(spec, role, stages, layers):
    assert balanced(spec, stages, role) == layers


@pytest.mark.parametrize(
    ("role", "stages", "layers"),
    [("prefill", 2, (3, 3)), ("unified", 2, (4, 2)), ("decode", 2, (4, 2))],
)
def test_a_prompt_passes_some_experts_and_a_batch_reads_all(role, stages, layers):
    columns = LAYER.feed.columns // 2
    experts = ExpertsSpec(experts=8, top_k=2, columns=columns, gate=GateSpec())
    mixed = replace(LAYER, feed=experts)
    spec = replace(TINY, layers=(LAYER, LAYER, *4 * (mixed,)), vocab=8)
    assert balanced(spec, stages, role) == layers


@pytest.mark.parametrize(
    ("sizes", "stages", "counts"),
    [
        ([1, 1, 1, 1, 1], 2, (3, 2)),
        ([1, 1, 1, 1, 4], 2, (4, 1)),
        ([4, 1, 1, 1, 1], 2, (1, 4)),
        ([1, 9, 1, 1, 1], 3, (1, 1, 3)),
        ([1, 2, 3, 4, 5], 3, (3, 1, 1)),
        ([5], 1, (1,)),
        ([1, 1], 2, (1, 1)),
    ],
)
def test_sizes_are_cut_evenly(sizes, stages, counts):
    assert cut(sizes, stages) == counts


def test_with_expert_parallelism_ranks_have_whole_experts():
    split = ParallelConfig(tp=2, dp=2, ep=True)
    parts = [part(TINY, split, rank) for rank in range(4)]
    assert [each.experts(6) for each in parts] == [
        range(2), range(2, 4), range(4, 5), range(5, 6)
    ]  # fmt: skip
    assert [each.experts(3) for each in parts] == [
        range(1), range(1, 2), range(2, 3), range(3, 3)
    ]  # fmt: skip
    assert [each.experts_by_rank(6) for each in parts] == [(2, 2, 1, 1)] * 4
    assert parts[3].experts_by_rank(3) == (1, 1, 1, 0)
    assert [each.expert_columns(12) for each in parts] == [range(12)] * 4


def test_without_it_they_have_their_columns_of_all():
    for split in (ParallelConfig(tp=2), ParallelConfig(dp=2)):
        second = part(TINY, split, 1)
        assert (second.experts(6), second.expert_columns(12)) == (range(6), range(6, 12))


def test_expert_parallelism_on_one_rank_is_none():
    assert not part(TINY, ParallelConfig(pp=2, ep=True), 1).ep


@pytest.mark.parametrize("tp", [1, 2])
def test_parts_cover_the_layers_in_order(tp):
    split = ParallelConfig(pp=3, tp=tp)
    parts = [part(TINY, split, rank) for rank in range(3 * tp)]
    assert [layer for each in parts[::tp] for layer in each.layers] == [0, 1, 2, 3]
    assert [(each.embeds, each.samples) for each in parts[::tp]] == [
        (True, False),
        (False, False),
        (False, True),
    ]


def test_a_given_split_wins():
    split = ParallelConfig(pp=2, layers=(3, 1))
    assert [part(TINY, split, rank).layers for rank in (0, 1)] == [range(3), range(3, 4)]


def test_a_rank_is_named_with_its_stage():
    assert [Numbering(2).name(rank) for rank in (1, 2)] == ["rank 1 (stage 0)", "rank 2 (stage 1)"]
    assert Numbering(1, 2).name(5) == "rank 5 (stage 2, dp rank 1)"


def test_ranks_are_numbered_by_stage_then_dp_rank_then_shard():
    numbering = Numbering.of(ParallelConfig(pp=2, tp=2, dp=3))
    places = [RankPlace(s, d, t) for s in range(2) for d in range(3) for t in range(2)]
    assert [numbering.place(rank) for rank in range(12)] == places
    assert [numbering.rank(place) for place in places] == list(range(12))
    assert (numbering.stage(1), numbering.attention(1, 2)) == (range(6, 12), range(10, 12))
    assert [numbering.stages(range(a, a + 4)) for a in (0, 4, 8)] == [
        range(1),
        range(2),
        range(1, 2),
    ]


@pytest.mark.parametrize(("tp", "dp"), [(1, 4), (2, 2), (4, 1)])
def test_columns_are_split_over_a_stage_and_heads_over_an_attention_group(tp, dp):
    split = ParallelConfig(pp=2, tp=tp, dp=dp)
    parts = [part(TINY, split, rank) for rank in range(4, 8)]
    assert [each.pp_rank for each in parts] == [1] * 4
    total = LAYER.feed.columns
    assert [column for each in parts for column in each.columns(total)] == list(range(total))
    for d in range(dp):
        group = parts[d * tp : (d + 1) * tp]
        assert [each.dp_rank for each in group] == [d] * tp
        assert [head for each in group for head in each.heads] == list(range(TINY.heads))
        assert [id for each in group for id in each.vocab] == list(range(TINY.vocab))
