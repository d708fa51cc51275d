"""What is refused before any process starts."""

import pytest
from pds_engine import cli, launch
from pds_engine.config import EngineConfig, load
from pds_engine.errors import ConfigError
from real_processes import MODEL
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"model": {"path": "/nowhere"}}, "/nowhere"),
        ({"parallelism": {"pp": 9}}, "parallelism.pp 9 is above the model's 4 layers"),
        ({"parallelism": {"tp": 3}}, "parallelism.tp 3 does not divide"),
        (
            {"parallelism": {"dp": 5}},
            "parallelism.tp 1 times parallelism.dp 5 does not divide the model's 384 MLP columns",
        ),
        ({"parallelism": {"pp": 2, "layers": [1, 2]}}, r"parallelism.layers \[1, 2\]"),
        ({"max_model_len": 100_000}, "max_model_len 100000"),
        ({"kv": {"pages": 255}}, "kv: 255 pages hold 4080 tokens, max_model_len is 4096"),
        ({"scheduler": {"chunk_size": 8}}, "chunk_size 8 is less than a page of 16 tokens"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(tree: dict, says: str) -> None:
    config = EngineConfig.model_validate({"model": {"path": MODEL}, **tree})
    with pytest.raises(ConfigError, match=says):
        launch.check(config)


@pytest.mark.parametrize("split", [{"tp": 2}, {"dp": 2}, {"pp": 2, "tp": 2, "dp": 4}])
def test_a_stage_of_several_ranks_is_served(split: dict) -> None:
    launch.check(EngineConfig.model_validate({"model": {"path": MODEL}, "parallelism": split}))


def test_a_flag_says_how_long_a_request_may_be() -> None:
    done = CliRunner().invoke(cli.app, ["serve", "--model", MODEL, "--max-model-len", "100000"])
    assert "max_model_len 100000 is above" in str(done.exception)


def test_a_model_without_a_name_has_its_folder_s(tmp_path) -> None:
    file = tmp_path / "engine.yaml"
    file.write_text("model: {path: examples/models/tiny}")
    assert load(file, environ={}).model.name == "tiny"
    assert load(file, flags={"model.path": tmp_path / "other"}, environ={}).model.name == "other"
    assert load(file, flags={"model.name": "mine"}, environ={}).model.name == "mine"


def test_compiled_kernels_need_a_folder() -> None:
    with pytest.raises(ConfigError, match=r"compile: true needs cache\.path"):
        load(flags={"compile": "true"}, environ={})
