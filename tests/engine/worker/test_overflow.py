"""A group goes on when one request overflows; weights that are no numbers end it with 78."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pds_engine.errors import EXIT_CONFIG
from pds_engine.messages import Failed, Token
from safetensors.torch import load_file, save_file
from torch import Tensor

Edit = Callable[[dict[str, Tensor]], None]


@pytest.fixture
def changed(model: Path, tmp_path: Path) -> Callable[[Edit], Path]:
    """The model with its tensors changed."""

    def make(edit: Edit) -> Path:
        folder = shutil.copytree(model, tmp_path / "changed")
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return make


@pytest.mark.parametrize("pp", [1, 2])
def test_a_group_of_stages_fails_that_request_alone(
    pp, changed, overflow, poison, shaped, start, submit, prompt
):
    config = shaped(model__path=changed(overflow), parallelism__pp=pp)
    group = start(config, "g")
    group.await_ready()
    sound = tuple(token for token in prompt(40, 3) if token != poison)
    biased = {"logit_bias": {poison: 100.0}}
    expected = [token.token for token in group.collect(submit("alone", sound, 12))["alone"]]
    asked = [
        submit("good", sound, 12),
        submit("first", (*sound, poison), 12),
        submit("later", sound, 12, biased),
    ]
    for one in asked:
        group.link.send(one)
    tokens: dict[str, list[int]] = {one.request_id: [] for one in asked}
    failed: dict[str, Failed] = {}
    while len(failed) < 2 or len(tokens["good"]) < 12:
        message = group.receive()
        if isinstance(message, Token):
            tokens[message.request_id].append(message.token)
        elif isinstance(message, Failed):
            failed[message.request_id] = message
    assert tokens == {"good": expected, "first": [], "later": [poison]}
    assert {(f.status, f.code) for f in failed.values()} == {(500, "not_finite")}
    group.await_state(lambda state: (state.kv_used, state.running, state.in_flight) == (0, 0, 0))
    again = group.collect(submit("again", sound, 12))["again"]
    assert [token.token for token in again] == expected


def test_weights_that_are_no_numbers_end_the_rank_with_78(changed, config, start):
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"][3] = float("nan")

    group = start(config.model_copy(update={"model": config.model.model_copy(
        update={"path": changed(spoil)})}), "g")  # fmt: skip
    assert group.workers[0].wait(60) == EXIT_CONFIG
    assert "model.norm.weight" in (group.log.parent / "error.json").read_text()
