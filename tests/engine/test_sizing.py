"""Memory as arithmetic: what ranks hold, and what is refused because it does not fit.

tests/engine/runner/test_sizes.py compares with what the loader holds.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from model_folder import Folder
from pds_engine.errors import ConfigError
from pds_engine.models.registry import check, family_of
from pds_engine.sizing import (
    RankSizes,
    check_memory,
    check_pages,
    human,
    longest,
    parameters,
    passed,
    sizes,
    weight_bytes,
)
from pds_engine.spec import DecoderSpec, ExpertsSpec, GateSpec


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


LAYER = 2 * 16 + 64 * 16 + 16 * 32 + 2 * 24 * 16 + 16 * 24
"""Of the folder's model without its norms of heads: two norms, qkv, out, gate and up, down."""


def ranks(folder, **keys) -> tuple[RankSizes, ...]:
    config = folder.engine(**keys)
    return sizes(config, check(config))


def half(folder) -> dict[str, object]:
    return {"path": folder.path, "dtype": "bfloat16"}


def test_weights_are_counted_by_rank(folder):
    layer = LAYER + 6 * 8  # a row for each of its heads
    [alone] = ranks(folder, model=half(folder))
    assert alone.weights == 2 * (2 * layer + 2 * 40 * 16 + 16)
    first, last = ranks(folder, parallelism={"pp": 2})
    assert (first.weights, last.weights) == (4 * (layer + 640), 4 * (layer + 640 + 16))


def test_what_is_tied_counts_once_where_it_is_one(folder):
    folder.configure(tie_word_embeddings=True)
    [alone] = ranks(folder)
    folder.configure(tie_word_embeddings=False)
    [untied] = ranks(folder)
    assert untied.weights - alone.weights == 4 * 40 * 16
    folder.configure(tie_word_embeddings=True)
    tied = ranks(folder, parallelism={"pp": 2})
    folder.configure(tie_word_embeddings=False)
    assert tied == ranks(folder, parallelism={"pp": 2})


def test_a_cpu_may_keep_float32(folder):
    config = folder.engine(model=half(folder))
    spec = check(config)
    [plain], [wide] = sizes(config, spec), sizes(config, spec, "float32")
    assert wide.weights == 2 * plain.weights
    assert wide.page_bytes == plain.page_bytes


def test_norms_in_float32_are_counted_so(folder):
    config = folder.engine(model=half(folder))
    spec = check(config)
    [found] = sizes(config, spec)
    wide = weight_bytes(replace(spec, norm_wide=True), found.part, "bfloat16")
    heads = 2 * (4 + 2) * 8  # a row for each query and KV head of both layers
    assert wide - found.weights == 2 * (5 * 16 + heads)


def mixed(spec: DecoderSpec) -> DecoderSpec:
    """The model with 5 experts of 12 columns, and a shared block of 8, in its last layer."""
    experts = ExpertsSpec(
        experts=5, top_k=2, columns=12, gate=GateSpec(correction=True), shared_columns=8
    )
    return replace(spec, layers=(spec.layers[0], replace(spec.layers[1], feed=experts)))


def test_experts_are_split_by_columns_or_whole(folder):
    config = folder.engine(parallelism={"tp": 2, "dp": 2, "ep": True})
    spec = check(folder.engine())
    columns = config.model_copy(
        update={"parallelism": config.parallelism.model_copy(update={"ep": False})}
    )
    whole, cut = sizes(config, mixed(spec)), sizes(columns, mixed(spec))
    expert, shared = 3 * 16 * 12, 3 * 16 * 8
    assert [each.weights - cut[0].weights for each in cut] == [0] * 4
    assert [each.weights - whole[-1].weights for each in whole] == [4 * expert, 0, 0, 0]
    more = 2 * expert + shared - (5 * expert + shared) // 4
    assert whole[0].weights - cut[0].weights == 4 * more


def test_a_token_passes_some_of_the_experts(folder):
    spec = check(folder.engine())
    assert parameters(spec, family_of(spec).names) == 2 * 40 * 16 + 16 + 2 * (LAYER + 2 * 8)
    assert passed(spec, family_of(spec).names) == parameters(spec, family_of(spec).names)


@pytest.mark.parametrize(
    ("kv", "pages"),
    [
        ({"memory_bytes": 1 << 20}, 255),  # 2 layers · K and V · 2 heads · 16 tokens · 8 · 4 bytes
        ({"memory_bytes": 1 << 20, "dtype": "bfloat16"}, 511),
        ({"memory_bytes": 1 << 20, "page_size": 32}, 127),
        ({"pages": 9}, 9),
    ],
)
def test_pages_are_what_memory_holds_but_one(folder, kv, pages):
    [found] = ranks(folder, kv=kv)
    assert found.pages == pages
    assert found.tokens == pages * found.page_size
    assert found.pool == (pages + 1) * found.page_bytes
    if "pages" not in kv:
        assert found.pool == kv["memory_bytes"]


def test_the_rank_with_fewest_pages_has_the_last_word(folder):
    split = {"pp": 2, "layers": [1, 1]}
    found = ranks(folder, parallelism=split, kv={"memory_bytes": 1 << 20})
    assert [each.pages for each in found] == [511, 511]
    spec = check(folder.engine())
    assert longest(folder.engine(), spec, found) == 64
    small = [replace(found[0], pages=3), found[1]]
    assert longest(folder.engine(), spec, small) == 48
    config = folder.engine(max_model_len=48, parallelism=split)
    check_pages(config, spec, small)
    with pytest.raises(ConfigError, match="kv: 2 pages hold 32 tokens, max_model_len is 48") as it:
        check_pages(config, spec, [replace(found[0], pages=2), found[1]])
    needed = 4 * found[0].page_bytes
    assert it.value.hint == f"raise kv.memory_bytes to {needed}, or lower max_model_len"


def test_pages_that_were_given_are_what_to_raise(folder):
    config = folder.engine(max_model_len=64, kv={"pages": 2})
    with pytest.raises(ConfigError) as refused:
        check_pages(config, check(config), sizes(config, check(config)))
    assert refused.value.hint == "raise kv.pages to 4, or lower max_model_len"


def test_weights_and_pages_must_fit_together(folder):
    found = ranks(folder, parallelism={"pp": 2}, kv={"memory_bytes": 1 << 20})
    need = sum(each.weights + each.pool for each in found)
    check_memory(found, need, "this container")
    with pytest.raises(
        ConfigError, match=r"rank 0 \(stage 0\) and 1 more would hold .* of weights"
    ):
        check_memory(found, need - 1, "this container")
    with pytest.raises(ConfigError, match=r"rank 1 \(stage 1\) would hold .*, its GPU has"):
        check_memory(found[1:], 1 << 20, "its GPU")


@pytest.mark.parametrize(
    ("pages", "reach", "says"),
    [
        (3, 48, "kv: 3 pages hold 48 tokens, a request holds those of 64 at once"),
        (4, 64, None),
    ],
)
def test_behind_a_window_pages_are_given_back(folder, pages, reach, says):
    """A window of 16 tokens, and two steps in flight of a page each: 47 tokens, in 4 pages."""
    config = folder.engine(kv={"pages": pages}, scheduler={"chunk_size": 16})
    plain = check(config)
    layers = [replace(e, attention=replace(e.attention, window=16)) for e in plain.layers]
    spec = replace(plain, layers=tuple(layers), max_position=4096)
    found = sizes(config, spec)
    longer = config.model_copy(update={"max_model_len": 4096})
    assert longest(config, spec, found) == (reach if says else 4096)
    if says is None:
        check_pages(longer, spec, found)
    else:
        with pytest.raises(ConfigError, match=says):
            check_pages(longer, spec, found)


@pytest.mark.parametrize(
    ("count", "text"),
    [(512, "0.50 KiB"), (1 << 20, "1.00 MiB"), (3 << 29, "1.50 GiB"), (5 << 40, "5120.00 GiB")],
)
def test_bytes_for_people(count, text):
    assert human(count) == text
