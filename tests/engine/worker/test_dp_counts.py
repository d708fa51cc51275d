"""What dp ranks of real groups agree by, counted where it leaves their processes (counted.py).

Over a thousand passes: one collective a pass or none, in the group and on the device that belong
together, and one copy from the device or none.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from counted import Counts, counted, counts, gathers
from pairwise import Case, Matrix, name, pairs
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.messages import State, Submit
from pydantic import ValidationError
from real_group import Group, handed_over

pytestmark = pytest.mark.slow

PASSES = 1000
LAYERS = 2
AXES: Mapping[str, Sequence[Any]] = {
    "dp": (1, 2, 4),
    "pp": (1, 2),
    "overlap": (True, False),
    "sync": ("host", "device"),
    "delayer": (True, False),
    "gather": ("rows", "none"),  # the second is role decode's
    "mode": ("none", "host", "device"),
}
"""The last one follows from the others: where rows are gathered."""


def mode(case: Case) -> str:
    if case["dp"] == 1 or case["gather"] == "none":
        return "none"
    return "host" if case["overlap"] and case["sync"] == "host" else "device"


def refusal(case: Case) -> str | None:
    """What is wrong with these settings."""
    if case["gather"] == "none" and case["delayer"]:
        return "delayer.enabled: the delayer has nothing to go by at dp.gather: none"
    return None


def possible(case: Case) -> bool:
    return refusal(case) is None and case["mode"] == mode(case)


def ranks_of(case: Case) -> int:
    return case["dp"] * case["pp"]


def matrix(most: int) -> Matrix:
    """Of groups with so many dp ranks at most."""
    return Matrix(
        AXES,
        lambda case: possible(case) and case["dp"] <= most,
        shape=lambda case: tuple(case.values()),
        price=ranks_of,
    )


FEW, MANY = matrix(2).covering(seed=14), matrix(4).covering(seed=15)
USUAL = {"dp": 2, "pp": 1, "overlap": True, "delayer": True, "gather": "rows"}
CASES = [
    *((case, 200) for case in FEW),
    *(({**USUAL, "sync": each, "mode": each}, PASSES) for each in ("host", "device")),
    *(pytest.param(case, PASSES, marks=pytest.mark.soak) for case in MANY),
]
"""Settings and passes: `make unit` goes over all pairs with up to two dp ranks briefly."""


def configured(shaped: Callable[..., EngineConfig], case: Case, **more: Any) -> EngineConfig:
    return shaped(
        role="unified" if case["gather"] == "rows" else "decode",
        parallelism__dp=case["dp"],
        parallelism__pp=case["pp"],
        scheduler__async_scheduling=case["overlap"],
        dp__sync_device=case["sync"],
        dp__gather=case["gather"],
        delayer__enabled=case["delayer"],
        **more,
    )


def test_every_pair_that_is_allowed_occurs_and_the_others_are_refused_by_name(shaped):
    assert pairs(MANY) == pairs(matrix(4).every())
    asked = {axis: values for axis, values in AXES.items() if axis != "mode"}
    for values in product(*asked.values()):
        case = dict(zip(asked, values, strict=True))
        if (why := refusal(case)) is None:
            configured(shaped, case)
            continue
        with pytest.raises(ValidationError) as refused:
            configured(shaped, case)
        assert why in str(refused.value)
    for role in ("unified", "prefill"):
        with pytest.raises(ValidationError, match=f"dp.gather: none is for role decode, .*{role}"):
            shaped(role=role, dp__gather="none")


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of which a stage has one layer."""
    torch.manual_seed(5)
    config = transformers.Qwen3Config(
        vocab_size=200,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
    )
    folder = tmp_path_factory.mktemp("thin")
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def counting(keys: Keys, tmp_path: Path) -> Iterator[Callable[[EngineConfig], Group]]:
    """Starts a group whose processes count, and ends it."""
    groups: list[Group] = []

    def start(config: EngineConfig) -> Group:
        groups.append(Group(config, keys, tmp_path, "counted", counted))
        groups[-1].await_ready()
        return groups[-1]

    yield start
    for group in groups:
        group.close()


_numbers = count()


def taken(group: Group) -> dict[str, Counts]:
    return {kind: counts(group.folder, kind) for kind in group.kinds}


def waves(case: Case, passes: int, prompt, submit) -> Iterator[tuple[list[Submit], list[int]]]:
    """Requests and their dp ranks: all ranks at first, then one after another, while the others
    are idle; beside a request that decodes for long, now and then a prompt of several chunks."""
    for wave in count():
        ranks = range(case["dp"]) if wave == 0 else [wave % case["dp"]]
        placed = [(length, rank) for rank in ranks for length in ((7, 100) if wave % 2 else (7,))]
        yield (
            [submit(f"r{next(_numbers)}", prompt(n, wave), passes // 2 + 20) for n, _ in placed],
            [rank for _, rank in placed],
        )


def named(value: Any) -> str:
    return name(value) if isinstance(value, dict) else f"{value} passes"


@pytest.mark.parametrize(("case", "passes"), CASES, ids=named)
def test_collectives_and_copies(counting, running, thin, shaped, prompt, submit, case, passes):
    size = {"model__path": thin, "max_model_len": 1024, "kv__pages": 128}
    config = configured(shaped, case, **size)
    prefill = running(shaped(role="prefill", **size)) if config.role == "decode" else None
    group = counting(config)
    run(group, prefill, case, passes, waves(case, passes, prompt, submit))
    gloo = {"backend": "gloo", "ranks": case["dp"], "device": "cpu"}
    on_device = case["mode"] == "device"  # gloo and CPU have NCCL's and a GPU's place here
    for kind in group.kinds:
        made = [{**gloo, "on_device": on_device}] if gathers_rows(kind, case) else []
        assert gathers(group.folder, kind) == made


@pytest.mark.gpu
def test_on_devices_rows_cross_by_nccl(counting, thin, shaped, prompt, submit):
    """A rank a device: NCCL refuses two on one."""
    if (devices := torch.cuda.device_count()) < 2:
        pytest.skip(f"two dp ranks on NCCL need 2 CUDA devices, and there are {devices}")
    case = {**USUAL, "sync": "device", "mode": "device"}
    size = {"model__path": thin, "max_model_len": 1024, "kv__pages": 128}
    group = counting(configured(shaped, case, device="cuda", **size))
    run(group, None, case, PASSES, waves(case, PASSES, prompt, submit))
    nccl = {"backend": "nccl", "ranks": 2, "device": "cuda", "on_device": True}
    for kind in group.kinds:
        assert gathers(group.folder, kind) == ([nccl] if kind.startswith("worker") else [])


def run(
    group: Group,
    prefill: Group | None,
    case: Case,
    passes: int,
    load: Iterator[tuple[list[Submit], list[int]]],
) -> None:
    """More than so many passes under this load; every process has counted what it should."""
    before = taken(group)
    assert not any(each.sync for each in before.values())
    while group.state.steps_done <= passes:
        asked, ranks = next(load)
        if prefill is None:
            group.collect(*asked, ranks=ranks)
        else:
            handed_over(prefill, group, asked, decode_ranks=ranks)
        group.idle()

    def since() -> dict[str, Counts]:
        return {
            kind: Counts(*(now - then for now, then in zip(each, before[kind], strict=True)))
            for kind, each in taken(group).items()
        }

    def wanted() -> dict[str, Counts]:
        return {kind: expected(kind, case, group.state) for kind in group.kinds}

    # Ranks go on for a few passes after the last request, until they all know that it was.
    until = time.monotonic() + 10
    while since() != wanted() and time.monotonic() < until:
        with suppress(TimeoutError):
            group.receive(0.2)
    assert since() == wanted()
    assert (group.state.passes > passes) == (case["mode"] != "none")
    assert bool(group.state.delayer_passes) == case["delayer"]


def gathers_rows(kind: str, case: Case) -> bool:
    """Whether that process gathers: on the host each scheduler, on the device the first stage's
    workers."""
    process, _, rank = kind.partition("-")
    if process == "scheduler":
        return case["mode"] == "host"
    return case["mode"] == "device" and int(rank) < case["dp"]


def expected(kind: str, case: Case, state: State) -> Counts:
    """One gather a pass, and one copy where it is on a device. A step of several dp ranks has two
    collectives a layer besides, and no other."""
    gathered = state.passes * gathers_rows(kind, case)
    copied = gathered * (case["mode"] == "device")
    layers = 2 * LAYERS // case["pp"] * (case["dp"] > 1) * kind.startswith("worker")
    return Counts(gathered, layers * state.steps_done, copied, copied)
