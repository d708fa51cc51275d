"""The warm-up and its proof, as the operator reads it, on good volumes and on bad ones.

Nothing is really compiled here: what matters is where artefacts lie, and what logs and proofs say.
"""

import errno
import functools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compile_threads import threads
from pds_engine import cache, warmup
from pds_engine import config as configuration
from pds_engine.artefacts import plan as artefacts
from pds_engine.artefacts.plan import plan
from pds_engine.cache import open_cache
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.keys import Keys
from pds_engine.server.warmed import show_warmup
from pds_engine.warming import memory
from pds_engine.worker import kernels
from pds_kernels import linear, rms_norm
from pds_kernels.cache import Cache
from pds_kernels.cache.files import Files
from pds_kernels.cpu import Library, library
from prometheus_client import CollectorRegistry
from warm_pod import WarmPod

TWO = (linear.CPU_LIBRARY, rms_norm.CPU_LIBRARY)


class Refusing(Files):
    """A volume that can be read, and refuses to be written with `NUMBER`."""

    NUMBER = errno.ENOSPC

    def begin(self, operation: str, path: Path) -> None:
        if operation in ("make", "write", "rename"):
            raise OSError(self.NUMBER, os.strerror(self.NUMBER), str(path))


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], WarmPod]:
    """Pods over one volume; the last one made warms up."""
    monkeypatch.setattr(warmup, "_start", lambda work, kinds: threads(work))
    monkeypatch.setattr(artefacts, "libraries", lambda spec: TWO)
    monkeypatch.setattr(kernels, "install", lambda planned, found, cache: None)

    def make(name: str) -> WarmPod:
        made = WarmPod(tmp_path, name)

        def build(self: Library, folder: Path) -> None:
            made.built.append(self.name)
            (folder / library.FILE).write_bytes(self.name.encode() * 1000)

        monkeypatch.setattr(Library, "build", build)
        monkeypatch.setattr(warmup, "TERMINATION_LOG", made.log)
        return made

    return make


@pytest.fixture
def refuses(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on the volume refuses writes with this error."""

    def begin(number: int) -> None:
        monkeypatch.setattr(Refusing, "NUMBER", number)
        monkeypatch.setattr(cache, "Cache", functools.partial(Cache, files=Refusing))

    return begin


def test_the_next_pod_compiles_nothing(pod: Callable[[str], WarmPod]) -> None:
    first = pod("a").warm()
    assert (first["compiled"], first["reused"], first["error"], first["volume"]) == (2, 0, "", "")
    second = pod("b")
    proof = second.warm()
    assert (proof["compiled"], proof["reused"], proof["volume"]) == (0, 2, "")
    assert proof["manifest"] == first["manifest"] == second.load()
    assert len(list(second.volume.glob("v1/manifests/default/none/unified/0.json"))) == 1


def test_each_pod_shows_what_its_warm_up_did(pod: Callable[[str], WarmPod]) -> None:
    for name, source in (("a", "built"), ("b", "found")):
        warm = pod(name)
        assert shown(warm.config()) == {}
        warm.warm()
        told = shown(warm.config())
        assert told.pop("pds_warmup_seconds 0") >= 0
        assert told == {
            f"pds_warmup_artefacts {kind} 0": 2.0 if kind == source else 0.0
            for kind in ("built", "found", "other")
        }


def shown(config: EngineConfig) -> dict[str, float]:
    """The gauges of a warm-up, by their names and the values of their labels."""
    registry = CollectorRegistry()
    show_warmup(config, registry)
    return {
        " ".join([each.name, *sorted(each.labels.values(), reverse=True)]): each.value
        for family in registry.collect()
        for each in family.samples
    }


def test_a_node_of_another_processor_warms_its_own_target_beside_the_first(
    pod: Callable[[str], WarmPod], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pod("a").warm()
    there = pytest.MonkeyPatch()
    there.setattr(library, "target", lambda isa: "cpu-of-another-node")
    joined = pod("b")
    proof = joined.warm()
    assert (proof["compiled"], proof["reused"]) == (2, 0)
    assert proof["manifest"] == joined.load() != first["manifest"]
    assert pod("c").warm()["compiled"] == 0
    there.undo()
    later = pod("d")
    proof = later.warm()
    assert (proof["compiled"], proof["manifest"]) == (0, first["manifest"])
    assert later.load() == first["manifest"]


def test_an_engine_does_without_the_volume_that_its_warm_up_had(
    pod: Callable[[str], WarmPod],
) -> None:
    warm = pod("a")
    proof = warm.warm()
    shutil.rmtree(warm.volume)
    assert warm.load() == proof["manifest"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is full ("),
        (errno.EDQUOT, "is above its quota: "),
        (errno.EROFS, "is read-only: mount it writable"),
        (errno.EACCES, "refuses uid "),
        (errno.ESTALE, "is gone or broken (Stale file handle: "),
    ],
)
def test_a_volume_that_takes_nothing_costs_sharing_alone(
    pod: Callable[[str], WarmPod], refuses: Callable[[int], None], number: int, words: str
) -> None:
    refuses(number)
    lone = pod("a")
    proof = lone.warm()
    assert (proof["status"], proof["compiled"], proof["error"]) == (0, 2, "")
    assert proof["volume"].startswith(f"the compile cache's volume at {lone.volume} {words}")
    assert lone.load() == proof["manifest"]


def test_a_volume_that_has_all_is_good_even_if_it_takes_nothing(
    pod: Callable[[str], WarmPod], refuses: Callable[[int], None]
) -> None:
    pod("a").warm()
    refuses(errno.EROFS)
    proof = pod("b").warm()
    assert (proof["compiled"], proof["reused"], proof["volume"]) == (0, 2, "")


def test_where_a_compiler_fails_too_both_are_reported(
    pod: Callable[[str], WarmPod], refuses: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses(errno.ENOSPC)
    lone = pod("a")

    def fail(self: Library, folder: Path) -> None:
        raise ValueError("unexpected pos 128 vs 0")

    monkeypatch.setattr(Library, "build", fail)
    proof = lone.warm()
    assert (proof["status"], proof["manifest"]) == (1, "")
    assert "ValueError: unexpected pos 128 vs 0; besides, the compile cache's" in proof["error"]
    assert f"volume at {lone.volume} is full (" in proof["error"]


def test_a_failure_on_a_good_volume_is_reported_alone(
    pod: Callable[[str], WarmPod], monkeypatch: pytest.MonkeyPatch
) -> None:
    lone = pod("a")

    def fail(self: Library, folder: Path) -> None:
        raise ValueError("no such instruction")

    monkeypatch.setattr(Library, "build", fail)
    proof = lone.warm()
    assert proof["status"] == 1
    assert proof["error"] in {
        f"artefact {name}: ValueError: no such instruction" for name in ("linear", "rms_norm")
    }


def test_what_works_for_others_alone_compiles_nothing_that_they_will_not_get(
    pod: Callable[[str], WarmPod], refuses: Callable[[int], None]
) -> None:
    """The Job before a rollout: a fault of the volume is not the revision's."""
    refuses(errno.ENOSPC)
    job = pod("job")
    proof = job.warm(only_shared=True)
    assert (proof["status"], proof["manifest"], proof["error"]) == (0, "", "")
    assert proof["volume"].startswith(f"the compile cache's volume at {job.volume} is full (")
    assert job.built == []


def test_what_works_for_others_alone_fills_a_good_volume(pod: Callable[[str], WarmPod]) -> None:
    assert pod("job").warm(only_shared=True)["compiled"] == 2
    assert pod("a").warm()["reused"] == 2


def test_a_variable_says_that_a_warm_up_is_for_others() -> None:
    found = configuration.load(environ={"PDS_CACHE_ONLY_SHARED": "true"})
    assert found.cache.only_shared is True


def test_the_log_says_what_was_damaged_and_how_long_it_took_to_rebuild(
    pod: Callable[[str], WarmPod], capsys: pytest.CaptureFixture[str]
) -> None:
    first = pod("a")
    first.warm()
    for package in first.volume.rglob(library.FILE):
        package.write_bytes(b"evil")
    proof = pod("b").warm()
    assert (proof["compiled"], proof["volume"]) == (2, "")
    what = r"what lay in the cache was damaged (kernels.so has changed); compiled in 0.0 s"
    logged = {json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()}
    assert {f"artefact {name}: {what}" for name in ("linear", "rms_norm")} <= logged
    assert pod("c").warm()["reused"] == 2


def test_a_proof_of_many_words_can_still_be_read(
    pod: Callable[[str], WarmPod], refuses: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses(errno.ENOSPC)
    lone = pod("a")

    def fail(self: Library, folder: Path) -> None:
        raise ValueError("é" * 9000)

    monkeypatch.setattr(Library, "build", fail)
    assert lone.warm()["error"].startswith("artefact ")
    assert lone.log.stat().st_size <= 4096


def test_a_warm_up_without_a_compiler_says_so_in_its_proof(
    pod: Callable[[str], WarmPod], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/bin/false")
    library.compiler_version.cache_clear()
    try:
        proof = pod("a").warm()
    finally:
        library.compiler_version.cache_clear()
    assert (proof["status"], proof["manifest"]) == (1, "")
    assert proof["error"].startswith("the C++ compiler /bin/false does not run: ")


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_each_artefact_is_a_line_and_the_proof_is_the_last_one(
    pod: Callable[[str], WarmPod], capsys: pytest.CaptureFixture[str]
) -> None:
    proof = pod("a").warm(workers=1)
    first, second, last = lines(capsys)
    assert {first.pop("artefact"), second.pop("artefact")} == {"linear", "rms_norm"}
    took = first["seconds"]
    assert first.pop("stages") == [0]
    assert first == {"n": 1, "of": 2, "seconds": took, "left": round(took, 1), "source": "built"}
    assert (second["n"], second["left"], second["source"]) == (2, 0.0, "built")
    assert last == {name: value for name, value in proof.items() if name != "status"}
    pod("b").warm()
    first, second, _ = lines(capsys)
    assert (first["source"], second["source"], second["left"]) == ("found", "found", None)


def test_others_can_read_how_far_a_warm_up_is(
    pod: Callable[[str], WarmPod], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pod("a")
    place = first.volume / "v1/manifests/default/none/unified/0.progress.json"
    seen: list[dict[str, Any]] = []

    def build(self: Library, folder: Path) -> None:
        (folder / library.FILE).write_bytes(b"code")
        for _ in range(500):  # until the record of what came before is there
            if place.exists() and len(seen) == (found := json.loads(place.read_text()))["n"]:
                seen.append(found)
                return
            time.sleep(0.01)

    monkeypatch.setattr(Library, "build", build)
    first.warm(workers=1)
    assert [(each["state"], each["n"], each["of"]) for each in seen] == [
        ("compiling", 0, 2),
        ("compiling", 1, 2),
    ]
    last = json.loads(place.read_text())
    assert (last["state"], last["n"], last["left"], last["producer"]) == ("done", 2, 0.0, "local")
    assert [path.name for path in sorted(place.parent.iterdir())] == ["0.json", "0.progress.json"]


def test_a_small_container_compiles_one_at_a_time(
    pod: Callable[[str], WarmPod], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two libraries, each of which takes more than half of what there is."""
    monkeypatch.setattr(memory, "ceiling", lambda: memory.Ceiling(1 << 30, "a test's limit"))
    first = pod("a")
    wanted = plan(first.config()).wanted
    assert all(512 << 20 < each.memory <= 1 << 30 for each in wanted)
    assert first.warm(workers=2)["compiled"] == 2
    [place] = first.volume.rglob("*.progress.json")
    assert json.loads(place.read_text())["workers"] == 1


def test_a_failed_warm_up_says_so_to_others(
    pod: Callable[[str], WarmPod], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Library, folder: Path) -> None:
        raise ValueError("no such instruction")

    first = pod("a")
    monkeypatch.setattr(Library, "build", fail)
    first.warm()
    [place] = first.volume.rglob("*.progress.json")
    assert json.loads(place.read_text())["state"] == "failed"


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
        return open_cache(EngineConfig.model_validate(tree))

    def build(folder: Path) -> None:
        (folder / "kernel").write_text("compiled")

    assert cache(old, None).get("graph", {"name": "x"}, build, timeout=5).built
    assert cache(old, own).find("graph", {"name": "x"}) is not None  # the upgrade
    assert cache(new, own).find("graph", {"name": "x"}) is not None  # a rotation
    assert cache(new, None).find("graph", {"name": "x"}) is None
    (own / "cache.key").unlink()
    with pytest.raises(ConfigError, match=r"cannot read the key .*cache\.key: No such file"):
        cache(new, own)
