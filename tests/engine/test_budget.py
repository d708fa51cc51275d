"""How many pages memory holds: by exact numbers, and what is said where they are too few."""

from dataclasses import replace
from pathlib import Path

import pytest
from model_folder import Folder
from pds_engine import budget
from pds_engine.budget import Claim
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.models.registry import check
from pds_engine.sizing import needed, sizes, usable

MIB = 1 << 20


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def claim(rank: int = 0, holder: str = "one", **keys: int) -> Claim:
    figures = {"total": 100 * MIB, "weights": 20 * MIB, "page_bytes": 64 << 10, **keys}
    return Claim(rank=f"rank {rank}", holder=holder, source="resources.limits.memory", **figures)


def pages(folder: Folder, *claims: Claim, part: float = 0.5, **keys: object) -> int:
    keys = {"max_model_len": 64, "scheduler": {"max_running": 1000}, **keys}
    config = folder.engine(**keys)
    return budget.pages(config, check(config), claims, part)


@pytest.mark.parametrize(
    ("claims", "part", "found"),
    [
        ([claim()], 0.5, 30 * 16 - 1),  # one page is the runner's
        ([claim(step=5 * MIB, tables=MIB, others=4 * MIB)], 0.5, 20 * 16 - 1),
        ([claim()], 0.9, 70 * 16 - 1),
        # A container is shared, and an uneven rank takes what another leaves.
        ([claim(), claim(1, weights=10 * MIB)], 0.5, 20 * 16 // 2 - 1),
        ([claim(), claim(1, page_bytes=192 << 10)], 0.5, 10 * 16 // 4 - 1),
        # Processes have room beside a great part, once for each rank and once for the pod.
        ([claim(total=300 * MIB, base=58 * MIB)], 0.9, 110 * 16 - 1),
        ([claim(total=300 * MIB, base=58 * MIB)], 0.5, 110 * 16 - 1),
        ([claim(total=300 * MIB, base=8 * MIB)], 0.5, 130 * 16 - 1),
        ([claim(total=300 * MIB, base=49 * MIB), claim(1, base=49 * MIB)], 1, 50 * 16 // 2 - 1),
        # A rank that looked later found less free.
        ([claim(), claim(1, total=80 * MIB)], 0.5, 10 * 16 // 2 - 1),
        # Memories apart: the least of them.
        ([claim(), claim(1, "two", weights=40 * MIB)], 0.5, 10 * 16 - 1),
    ],
)
def test_pages_are_what_a_share_of_the_memory_leaves(folder, claims, part, found):
    assert pages(folder, *claims, part=part) == found


def test_no_more_pages_than_requests_hold_at_once(folder):
    """Three requests of 50 tokens, in four pages of 16 each."""
    bounds = {"max_running": 3, "max_step_tokens": 100}
    assert pages(folder, claim(), max_model_len=50, scheduler=bounds) == 12
    config = folder.engine(max_model_len=50, scheduler=bounds)
    spec = check(config)
    assert (needed(config, spec), usable(config, spec)) == (4, 12)
    assert sizes(config, spec)[0].pages == 12


@pytest.mark.parametrize(
    ("part", "figures", "cure"),
    [
        (0.2, {}, "raise kv.memory_fraction to 0.21, or lower max_model_len"),
        (0.5, {"step": 30 * MIB, "tables": MIB}, "raise kv.memory_fraction to 0.52, or lower"),
        (0.9, {"weights": 99 * MIB}, "give it 110.35 MiB of memory, or more ranks (tp, pp)"),
    ],
)
def test_too_little_names_the_knob(folder, part, figures, cure):
    with pytest.raises(ConfigError) as refused:
        pages(folder, claim(**figures), part=part)
    assert refused.value.hint is not None
    assert refused.value.hint.startswith(cure)
    assert refused.value.message.startswith(
        f"kv.memory_fraction: {part:g} of 100.00 MiB (resources.limits.memory) is"
    )
    assert "one request of max_model_len 64 needs 320.00 KiB of KV pages" in refused.value.message


def test_the_cure_that_is_named_helps(folder):
    with pytest.raises(ConfigError):
        pages(folder, claim(step=30 * MIB), part=0.5)
    assert pages(folder, claim(step=30 * MIB), part=0.51) >= 4


def test_all_that_take_part_are_named(folder):
    two = claim(weights=30 * MIB), claim(1, weights=30 * MIB, others=3 * MIB, step=MIB)
    says = (
        "50.00 MiB, of which rank 0 and 1 more take 60.00 MiB for weights, 1.00 MiB for a step; "
        "3.00 MiB are used by others; one request"
    )
    with pytest.raises(ConfigError) as refused:
        pages(folder, *two)
    assert says in refused.value.message


def test_the_share_is_what_is_said_or_what_the_device_is(folder):
    plain, said = EngineConfig(), EngineConfig.model_validate({"kv": {"memory_fraction": 0.3}})
    assert [budget.share(plain, gpu=gpu) for gpu in (True, False)] == [0.9, 0.5]
    assert [budget.share(said, gpu=gpu) for gpu in (True, False)] == [0.3, 0.3]


def test_only_ranks_that_sample_have_tables_of_penalties(folder):
    config = folder.engine(parallelism={"pp": 2}, scheduler={"max_running": 3})
    spec = check(config)
    first, last = sizes(config, spec)
    assert budget.penalties(config, spec, first.part) == 0
    assert budget.penalties(config, spec, last.part) == 3 * 40 * 5


def test_the_log_says_what_took_what():
    taken = claim(step=3 * MIB, tables=MIB, others=2 * MIB)
    assert taken.line(0.5, 15) == (
        "memory of rank 0: 0.5 of 100.00 MiB (resources.limits.memory) is 50.00 MiB: "
        "weights 20.00 MiB, a step 3.00 MiB, penalties 1.00 MiB, used by others 2.00 MiB, "
        "15 KV pages 1.00 MiB"
    )
    assert replace(taken, others=0).line(0.5, 15).count("others") == 0
