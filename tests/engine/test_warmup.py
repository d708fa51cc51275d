"""The warm-up's proof, as the operator reads it."""

import json
from pathlib import Path

import pytest
from pds_engine import warmup
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.keys import Keys
from pds_kernels.cache import Cache
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


def test_artefacts_stay_when_their_key_gets_a_secret_of_its_own(tmp_path: Path) -> None:
    """cache.key starts as a copy of hmac.key, and stays when the control key is another."""
    old, new, own = tmp_path / "old", tmp_path / "new", tmp_path / "own"
    keys = Keys.make()
    keys.write(old)
    Keys.make().write(new)
    own.mkdir()
    (own / "cache.key").write_text(keys.hmac.hex() + "\n")

    def cache(keys_dir: Path, key_dir: Path | None) -> Cache:
        places = {"path": tmp_path / "cache", "key_dir": key_dir}
        tree = {"cache": places, "http": {"keys_dir": keys_dir}}
        return warmup.open_cache(EngineConfig.model_validate(tree))

    def build(folder: Path) -> None:
        (folder / "kernel").write_text("compiled")

    assert cache(old, None).get("graph", {"name": "x"}, build, timeout=5).built
    assert cache(old, own).find("graph", {"name": "x"}) is not None  # the upgrade
    assert cache(new, own).find("graph", {"name": "x"}) is not None  # a rotation
    assert cache(new, None).find("graph", {"name": "x"}) is None
    (own / "cache.key").unlink()
    with pytest.raises(ConfigError, match=r"cannot read the key .*cache\.key: No such file"):
        cache(new, own)
