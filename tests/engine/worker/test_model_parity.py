"""Every kind of model answers as transformers does, token for token, whoever computes what.

Greedy, float32, real groups of processes: dp × tp × pp × experts whole or by columns × hand-over ×
chunks that cut windows and pages. `make unit` takes a slice with all pairs of values on groups of
few ranks; `make test-all` every model in every layout.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import near_ties
import pytest
import torch
import transformers
from comparing_groups import compare
from pairwise import Case, Matrix, name, pairs
from pds_engine.config import EngineConfig
from pds_engine.messages import Submit, Token
from random_models import EXPERTS, MODELS, saved
from real_group import handed_over

pytestmark = pytest.mark.slow

AXES: Mapping[str, Sequence[Any]] = {
    "model": tuple(MODELS),
    "dp": (1, 2),
    "tp": (1, 2),
    "pp": (1, 2),
    "ep": (False, True),
    "hand": ("none", "from", "to"),
    "chunk": (16, 48, 256),  # the last one holds any prompt
}
"""hand: the group is unified; hands over to a single rank; gets prompts from one."""


def ranks_of(case: Case) -> int:
    return case["dp"] * case["tp"] * case["pp"]


def possible(case: Case) -> bool:
    """Experts are split whole where there are some, and ranks to split them over."""
    return not case["ep"] or (case["model"] in EXPERTS and case["dp"] * case["tp"] > 1)


def cheap(case: Case) -> bool:
    """Groups of two ranks; whoever hands over or gets prompts has one besides."""
    return ranks_of(case) <= 2


MODEL_AND_LAYOUT = ("model", "dp", "tp", "pp", "ep", "hand")
WHOLE = Matrix(AXES, possible, lambda case: tuple(case.values()), ranks_of, wholly=MODEL_AND_LAYOUT)
SLICE = Matrix(
    AXES,
    lambda case: possible(case) and cheap(case),
    lambda case: tuple(case.values()),
    ranks_of,
)
FEW = SLICE.covering(5)
MANY = WHOLE.covering()
CASES = [*FEW, *(pytest.param(case, marks=pytest.mark.soak) for case in MANY if case not in FEW)]
LENGTHS = (150, 1, 33, 90)
OUTPUT = 64
_numbers = count()


def test_the_slice_is_cheap_and_the_whole_is_whole():
    assert pairs(FEW) == pairs(SLICE.every())
    assert len(FEW) <= 64
    every = {tuple(case[axis] for axis in MODEL_AND_LAYOUT) for case in WHOLE.every()}
    assert {tuple(case[axis] for axis in MODEL_AND_LAYOUT) for case in MANY} == every


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model, made when it is first asked for."""
    return cache(lambda kind: saved(kind, tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="module")
def references(folders: Callable[[str], Path]) -> Callable[[str], torch.nn.Module]:
    """The model in transformers, in float32."""

    @cache
    def loaded(kind: str) -> torch.nn.Module:
        found: torch.nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
            folders(kind), dtype=torch.float32, attn_implementation="eager"
        )
        return found.eval()

    return loaded


@pytest.fixture(scope="module")
def ties() -> Iterator[list[str]]:
    """Answers that went another way at a router's near tie; at most one in a hundred."""
    found: list[str] = []
    yield found
    print(f"{len(found)} answers went another way at a router's near tie: {found}")
    assert len(found) * 100 <= len(CASES) * len(LENGTHS)


def grouped(config: EngineConfig, case: Case, path: Path, role: str) -> EngineConfig:
    tree = config.model_dump()
    split = {axis: case[axis] for axis in ("dp", "tp", "pp", "ep")}
    tree["model"]["path"] = path
    tree["role"] = role
    tree["parallelism"] |= {**split, "ranks_per_pod": ranks_of(case)}
    tree["scheduler"] |= {"max_running": 4, "chunk_size": case["chunk"]}
    return EngineConfig.model_validate(tree)


ALONE = {"dp": 1, "tp": 1, "pp": 1, "ep": False}
ROLES = {"none": "unified", "from": "prefill", "to": "decode"}
OTHER = {"from": "decode", "to": "prefill"}


@pytest.mark.parametrize("case", CASES, ids=name)
def test_answers_are_those_of_transformers(
    lone, running, config, folders, references, prompt, submit, ties, case
):
    path, kind = folders(case["model"]), case["model"]
    asked = [
        submit(f"m{next(_numbers)}", prompt(length, at), OUTPUT)
        for at, length in enumerate(LENGTHS)
    ]
    found = answers(lone, running, config, path, case, asked)
    for each in asked:
        sent = found[each.request_id]
        try:
            compare(each, sent, lambda ids: scores(references(kind), ids))
        except AssertionError:
            ids = (*each.prompt_ids, *(token.token for token in sent))
            if not nearly_tied(references(kind), ids):
                raise
            ties.append(f"{name(case)} of {len(each.prompt_ids)} tokens")


def answers(
    lone, running, config: EngineConfig, path: Path, case: Case, asked: Sequence[Submit]
) -> dict[str, list[Token]]:
    """Each request's tokens; requests are dealt out to the dp ranks."""
    group = lone(grouped(config, case, path, ROLES[case["hand"]]))
    ranks = [at % case["dp"] for at in range(len(asked))]
    if case["hand"] == "none":
        return group.collect(*asked, ranks=ranks)
    other = running(grouped(config, {**case, **ALONE}, path, OTHER[case["hand"]]))
    if case["hand"] == "from":
        return handed_over(group, other, asked, ranks)
    return handed_over(other, group, asked, (), ranks)


def scores(model: torch.nn.Module, ids: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities of what follows each of these ids."""
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


def nearly_tied(model: torch.nn.Module, ids: tuple[int, ...]) -> bool:
    """Whether some router of transformers chooses an expert by a hair."""
    watched = deepcopy(model)
    near_ties.watch(watched)
    try:
        scores(watched, ids)
    except AssertionError:
        return True
    return False
