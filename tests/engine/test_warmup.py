"""The warm-up's proof, as the operator reads it."""

import json
from pathlib import Path

import pytest
from pds_engine import warmup
from pds_engine.config import EngineConfig
from pds_kernels.graph import toolchain

MODEL = Path(__file__).parents[2] / "examples" / "models" / "tiny"


def test_a_warm_up_without_a_compiler_says_so_in_its_proof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "termination-log"
    log.touch()
    monkeypatch.setattr(warmup, "TERMINATION_LOG", log)
    monkeypatch.setenv("CXX", "/bin/false")
    toolchain.cache_clear()
    cache = {"path": tmp_path / "cache", "warmup": True}
    tree = {"model": {"path": MODEL, "dtype": "float32"}, "cache": cache, "compile": True}
    try:
        assert warmup.run(EngineConfig.model_validate(tree)) == 1
    finally:
        toolchain.cache_clear()
    proof = json.loads(log.read_text())
    assert proof["manifest"] == ""
    assert proof["error"].startswith("the C++ compiler /bin/false does not run: ")
