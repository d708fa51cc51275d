"""What the dp ranks of real groups agree by, counted where it leaves the processes (counted.py).

Over a thousand passes: one collective a pass or none, in the group and on the device that belong
together, and one copy from the device or none.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
from counted import Counts, counted, counts, gathers
from pairwise import Case, Matrix, name, pairs
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.messages import State, Submit
from pydantic import ValidationError
from real_group import Group, handed_over

pytestmark = pytest.mark.slow

PASSES = 1000
LAYERS = 4
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


FEW, MANY = matrix(2).covering(), matrix(4).covering()
CASES = [*FEW, *(pytest.param(case, marks=pytest.mark.soak) for case in MANY if case not in FEW)]


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


def settled(group: Group) -> State:
    """The state once nothing is left of any request, and all dp ranks rest."""
    return group.await_state(lambda state: not (state.in_flight or state.transfers_in_flight))


def taken(group: Group) -> dict[str, Counts]:
    return {kind: counts(group.folder, kind) for kind in group.kinds}


def waves(case: Case, prompt, submit) -> Iterator[tuple[list[Submit], list[int]]]:
    """Requests and their dp ranks: all ranks at first, then one after another, while the others
    are idle; beside a request that decodes for long, now and then a prompt of several chunks."""
    for wave in count():
        ranks = range(case["dp"]) if wave == 0 else [wave % case["dp"]]
        placed = [(length, rank) for rank in ranks for length in ((7, 100) if wave % 2 else (7,))]
        yield (
            [submit(f"r{next(_numbers)}", prompt(n, wave), 248 - n) for n, _ in placed],
            [rank for _, rank in placed],
        )


@pytest.mark.parametrize("case", CASES, ids=name)
def test_collectives_and_copies_over_a_thousand_passes(
    counting, running, shaped, prompt, submit, case
):
    config = configured(shaped, case)
    group = counting(config)
    before = taken(group)
    prefill = running(shaped(role="prefill")) if config.role == "decode" else None
    for asked, ranks in waves(case, prompt, submit):
        if prefill is None:
            group.collect(*asked, ranks=ranks)
        else:
            handed_over(prefill, group, asked, decode_ranks=ranks)
        state = settled(group)
        if state.steps_done > PASSES:
            break
    assert (state.passes > PASSES) == (case["mode"] != "none")
    found = {
        kind: Counts(*(now - then for now, then in zip(each, before[kind], strict=True)))
        for kind, each in taken(group).items()
    }
    assert found == {kind: expected(kind, case, state) for kind in group.kinds}
    for kind in group.kinds:
        assert gathers(group.folder, kind) == ([made(case)] if gathers_rows(kind, case) else [])


def gathers_rows(kind: str, case: Case) -> bool:
    """Whether that process gathers: on the host each scheduler, on the device the first stage's
    workers."""
    process, _, rank = kind.partition("-")
    if process == "scheduler":
        return case["mode"] == "host"
    return case["mode"] == "device" and int(rank) < case["dp"]


def made(case: Case) -> dict[str, Any]:
    """The one group that it gathers in. gloo and CPU have NCCL's and a GPU's place here."""
    device = case["mode"] == "device"
    return {"backend": "gloo", "ranks": case["dp"], "device": "cpu", "on_device": device}


def expected(kind: str, case: Case, state: State) -> Counts:
    """One gather a pass, and one copy where it is on a device. A step of several dp ranks has two
    collectives a layer besides, and no other."""
    gathered = state.passes * gathers_rows(kind, case)
    copied = gathered * (case["mode"] == "device")
    layers = 2 * LAYERS // case["pp"] * (case["dp"] > 1) * kind.startswith("worker")
    return Counts(gathered, layers * state.steps_done, copied, copied)
