"""What the definition knows nothing of: pieces and their join, scratch memory, what is compiled."""

from dataclasses import replace

import pytest
import torch
from ahead import Compile, variants
from attention_steps import ALL_PAGES, NULL_PAGE, PAGE, Rows, plan_of, plan_on, repeating, write
from pds_kernels.launching import Launch, recording
from pds_kernels.paged_attention import Geometry, choose
from pds_kernels.paged_attention import reference as definition
from pds_kernels.paged_attention import triton as kernel
from pds_kernels.paged_attention.tuning import Blocks, Tuning, tuning
from pds_kernels.plan import AttentionPlan
from torch import Tensor

SMALL = Blocks(rows=16, places=16, warps=4, stages=1, resident=1)
PIECES = Tuning(decode=SMALL, extend=replace(SMALL, apart=True), least=16)
"""Contexts are cut to single blocks, as a few long ones are on a GPU."""
MANY = 10_000
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
META = torch.device("meta")


def geometry(device: str, heads: int, kv_heads: int, dim: int, **variant: float) -> Geometry:
    common = {"dtype": torch.float32, "kv_dtype": torch.float32, "device": torch.device(device)}
    return Geometry(heads, kv_heads, dim, PAGE, **common, **variant)


def tensors(asked: Geometry, plan: AttentionPlan) -> tuple[Tensor | None, ...]:
    """q, k and v, side by side as a projection leaves them; pages without NaN; sinks."""
    torch.manual_seed(0)
    total, heads = len(plan.write_slots), (asked.heads, asked.kv_heads, asked.kv_heads)
    mixed = torch.randn(total, sum(heads), asked.head_dim, dtype=asked.dtype, device=asked.device)
    pool = torch.randn(ALL_PAGES, 3, 2, asked.kv_heads, PAGE, asked.head_dim, dtype=asked.kv_dtype)
    pool = pool.to(asked.device)
    sinks = torch.randn(asked.heads, dtype=asked.dtype, device=asked.device)
    return *mixed.split(heads, 1), pool[:, 2, 0], pool[:, 2, 1], sinks if asked.sinks else None


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("heads", "rows", "variant"),
    [
        ((6, 2, 8), [(40, 1)], {}),
        ((6, 2, 8), [(15, 1), (16, 1), (31, 1), (32, 1)], {"sinks": True}),
        ((6, 2, 8), [(30, 9), (40, 1)], {"window": 20, "sinks": True, "softcap": 0.5}),
        ((3, 3, 24), [(30, 9), (40, 1)], {"sinks": True}),
        ((20, 1, 16), [(40, 3), (40, 1)], {}),
        # the first tokens of a tile see nothing of its last piece, nor the last of its first one
        ((2, 1, 16), [(12, 24)], {"window": 3}),
    ],
)
@pytest.mark.parametrize("multiprocessors", [1, MANY])
@pytest.mark.parametrize("device", DEVICES)
def test_whole_contexts_and_pieces(
    device: str,
    multiprocessors: int,
    heads: tuple[int, int, int],
    rows: Rows,
    variant: dict[str, float],
) -> None:
    """Groups of one, two, three and twenty heads a key. On one multiprocessor nothing is cut."""
    asked = geometry(device, *heads, **variant)
    how = PIECES if heads[0] <= 6 else replace(tuning(asked), least=16)
    plan = plan_on(device, plan_of(rows, padded=sum(length for _, length in rows) + 2))
    given = tensors(asked, plan)
    cut = kernel.prepare(asked, how, multiprocessors, plan)
    whole = definition.prepare(asked, plan)
    torch.testing.assert_close(cut(*given), whole(*given), rtol=1e-4, atol=1e-5)


STEPS: tuple[Rows, ...] = ([(40, 1), (15, 1), (0, 1)], [(31, 1)], [(9, 1)] * 4, [(32, 1)])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("variant", [{}, {"window": 20, "sinks": True, "softcap": 0.5}])
@pytest.mark.parametrize("multiprocessors", [1, 40])
@pytest.mark.parametrize("device", DEVICES)
def test_steps_that_are_repeated(
    device: str, multiprocessors: int, variant: dict[str, float]
) -> None:
    """The same launches each time, on what the steps write into their tensors; there is room for
    four requests. What a step before left behind is not read."""
    asked = geometry(device, 6, 2, 8, **variant)
    prepared = kernel.Preparing(asked, PIECES, multiprocessors)
    tensors_of_all = repeating(device, 4, 11)
    repeated = prepared.repeated(tensors_of_all)
    for rows in STEPS:
        plan = plan_on(device, plan_of(rows, padded=4))
        write(tensors_of_all, plan)
        repeated.fill(plan)
        given = tensors(asked, plan)
        expected = definition.prepare(asked, plan)(*given)
        torch.testing.assert_close(repeated.attend(*given), expected, rtol=1e-4, atol=1e-5)


def test_more_work_than_there_is_room_for_is_refused() -> None:
    asked = geometry("cpu", 6, 2, 8)
    repeated = kernel.Preparing(asked, PIECES, 1).repeated(repeating("cpu", 1, 11))
    with pytest.raises(ValueError, match=r"more work than Room\(pieces=1, "):
        repeated.fill(plan_of([(3, 1), (4, 1)]))


@pytest.mark.parametrize("device", DEVICES)
def test_keys_and_values_are_written_and_nothing_else(device: str) -> None:
    asked, plan = geometry(device, 4, 2, 8), plan_on(device, plan_of([(2, 3), (7, 1)], padded=6))
    q, k, v, keys, values, _ = tensors(asked, plan)
    expected = keys.clone(), values.clone()
    for pages, new in zip(expected, (k, v), strict=True):
        pages[plan.write_slots[:4] // PAGE, :, plan.write_slots[:4] % PAGE] = new[:4]
        pages[NULL_PAGE] = 0
    kernel.make(asked)(plan)(q, k, v, keys, values)
    for pages in (keys, values):
        pages[NULL_PAGE] = 0
    torch.testing.assert_close((keys, values), expected, rtol=0, atol=0)


def recorded(asked: Geometry, rows: Rows) -> list[Launch]:
    plan = plan_on("meta", plan_of(rows))
    with recording() as launches:
        choose(asked).make(asked)(plan)(*tensors(asked, plan))
    return launches


LLAMA = replace(
    geometry("meta", 32, 8, 128), dtype=torch.bfloat16, kv_dtype=torch.bfloat16, page_size=64
)


def test_what_is_compiled_depends_on_the_kind_of_requests_alone() -> None:
    steps = [[(3, 1)], [(130, 1), (16, 1), (0, 1)], [(0, 5), (3, 1)], [(40, 60), (31, 17), (3, 1)]]
    one, many, mixed, long = variants(*(recorded(LLAMA, rows) for rows in steps))
    assert one == many and len(one) == 3
    assert mixed == long and len(mixed) == 5 and one < mixed


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(LLAMA, id="Llama-3-8B"),
        pytest.param(replace(LLAMA, kv_heads=4), id="Qwen3-30B-A3B"),
        pytest.param(
            replace(LLAMA, heads=16, head_dim=256, softcap=50.0, window=4096), id="Gemma-2-9B"
        ),
        pytest.param(
            replace(LLAMA, heads=64, head_dim=64, window=128, sinks=True), id="gpt-oss-20b"
        ),
    ],
)
def test_compiles_for_sm_90(hopper: Compile, asked: Geometry) -> None:
    launches = recorded(asked, [(0, 5), (3, 1)])
    assert [each.function for each in launches] == [
        "write_pages",
        *["attend_pieces", "join_pieces"] * 2,
    ]
    assert {each.stack for each in hopper(launches)} == {0}


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [[(99, 1), (15, 1)], [(40, 60), (0, 17), (33, 1)]])
@pytest.mark.parametrize("variant", [{}, {"window": 30, "sinks": True, "softcap": 5.0}])
def test_real_heads_in_bfloat16(rows: Rows, variant: dict[str, float]) -> None:
    asked = replace(LLAMA, device=torch.device("cuda"), page_size=PAGE, **variant)
    plan = plan_on("cuda", plan_of(rows))
    given = tensors(asked, plan)
    found = kernel.prepare(asked, replace(tuning(asked), least=64), MANY, plan)(*given)
    exact = replace(asked, dtype=torch.float32, kv_dtype=torch.float32)
    wide = [None if each is None else each.float() for each in given]
    expected = definition.prepare(exact, plan)(*wide)
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=1e-2)
