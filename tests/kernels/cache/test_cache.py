"""The compile cache: one build a key, whatever else happens on the volume."""

import errno
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from pds_kernels.cache import Cache, Manifest, cache_key, read_manifest, store, write_manifest
from pds_kernels.cache.flight import Flight
from pds_kernels.cache.manifest import manifest_path

INPUTS = {"source": "abc", "torch": "2", "shape": "16"}


def build(folder: Path) -> None:
    (folder / "kernel.so").write_bytes(b"code")


def counted(log: Path):
    def run(folder: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.2)  # long enough for every rival to arrive
        build(folder)

    return run


def test_an_artefact_is_built_once_and_found_again(tmp_path):
    cache = Cache(tmp_path, b"key", producer="pod-0")
    first = cache.get("inductor", INPUTS, build)
    again = cache.get("inductor", INPUTS, lambda _: pytest.fail("compiled twice"))
    assert (first.built, again.built) == (True, False)
    assert first.folder == again.folder and first.digest == again.digest
    assert (again.folder / "kernel.so").read_bytes() == b"code"
    meta = json.loads((again.folder / "meta.json").read_text())
    assert meta["inputs"] == INPUTS and meta["producer"] == "pod-0"


def test_any_input_changes_the_key():
    keys = {cache_key(INPUTS), *(cache_key({**INPUTS, name: "other"}) for name in INPUTS)}
    assert len(keys) == 4


@pytest.mark.parametrize("damage", ["flip", "cut", "extra", "unseal", "uncommit"])
def test_a_damaged_artefact_is_rebuilt(tmp_path, damage):
    cache = Cache(tmp_path, b"key")
    folder = cache.get("k", INPUTS, build).folder
    if damage == "flip":
        (folder / "kernel.so").write_bytes(b"evil")
    elif damage == "cut":
        (folder / "kernel.so").write_bytes(b"")
    elif damage == "extra":
        (folder / "other.so").write_bytes(b"evil")
    elif damage == "unseal":
        (folder / "meta.json").write_text("{")
    else:
        (folder / ".committed").unlink()
    assert cache.find("k", INPUTS) is None
    assert cache.get("k", INPUTS, build).built
    assert (cache.get("k", INPUTS, build).folder / "kernel.so").read_bytes() == b"code"


def test_an_artefact_sealed_by_a_stranger_is_not_loaded(tmp_path):
    Cache(tmp_path, b"stranger").get("k", INPUTS, build)
    assert Cache(tmp_path, b"key").find("k", INPUTS) is None


def test_holders_of_two_secrets_share_a_volume_and_leave_each_other_alone(tmp_path):
    ours, theirs = Cache(tmp_path, b"key"), Cache(tmp_path, b"stranger")
    kept = theirs.get("k", INPUTS, build)
    assert ours.get("k", INPUTS, build).built
    assert ours.prune(unused_for=1e9, now=time.time()) == []
    assert [entry.key for entry in theirs.entries()] == [kept.key]
    assert theirs.find("k", INPUTS)


def _rival(root: Path, log: Path, barrier) -> None:
    barrier.wait()
    Cache(root, b"key").get("k", INPUTS, counted(log))


def test_four_processes_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, log = context.Barrier(4), tmp_path / "log"
    rivals = [context.Process(target=_rival, args=(tmp_path, log, barrier)) for _ in range(4)]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join(20)
    assert [rival.exitcode for rival in rivals] == [0] * 4
    assert len(log.read_text().splitlines()) == 1


def _hang(root: Path, started) -> None:
    def run(_: Path) -> None:
        started.set()
        signal.pause()

    Cache(root, b"key", lease=0.4).get("k", INPUTS, run)


def test_a_killed_compiler_is_replaced_when_its_lease_ends(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    holder = context.Process(target=_hang, args=(tmp_path, started))
    holder.start()
    assert started.wait(10)
    holder.kill()
    holder.join(10)
    assert Cache(tmp_path, b"key", lease=0.4).get("k", INPUTS, build, timeout=10).built


def test_a_slow_compiler_keeps_its_lease(tmp_path):
    holder = Flight(tmp_path / "lock", lease=0.2)
    assert holder.acquire(lambda: False, 1)
    waiter = Flight(tmp_path / "lock", lease=0.2)
    with pytest.raises(TimeoutError):
        waiter.acquire(lambda: False, 1.0)
    holder.release()
    assert not (tmp_path / "lock").exists()


def test_a_failed_build_publishes_nothing_and_frees_the_key(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("the compiler died")

    cache = Cache(tmp_path, b"key")
    with pytest.raises(RuntimeError, match="the compiler died"):
        cache.get("k", INPUTS, fail)
    assert list(cache.entries()) == []
    assert list((tmp_path / "v1" / "tmp").iterdir()) == []
    assert cache.get("k", INPUTS, build).built


def test_a_full_disk_costs_sharing_but_not_service(tmp_path, monkeypatch):
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_sync", full)
    made = Cache(tmp_path, b"key").get("k", INPUTS, build)
    assert made.built and not made.shared
    assert (made.folder / "kernel.so").read_bytes() == b"code"


def test_two_builders_at_once_leave_one_artefact(tmp_path):
    """A holder stopped for longer than its lease comes back and publishes second."""
    cache = Cache(tmp_path, b"key")

    def overtaken(folder: Path) -> None:
        next((tmp_path / "v1" / "locks").iterdir()).unlink()
        rival = threading.Thread(target=lambda: Cache(tmp_path, b"key").get("k", INPUTS, build))
        rival.start()
        rival.join(10)
        build(folder)

    assert cache.get("k", INPUTS, overtaken).shared
    assert [entry.intact for entry in cache.entries()] == [True]


def test_prune_removes_the_damaged_and_the_unused(tmp_path):
    cache = Cache(tmp_path, b"key")
    now = time.time()
    kept = cache.get("k", INPUTS, build)
    damaged = cache.get("k", {"a": "1"}, build)
    (damaged.folder / "kernel.so").write_bytes(b"x")
    old = cache.get("k", {"a": "2"}, build)
    os.utime(old.folder / ".committed", (now - 100, now - 100))
    gone = cache.prune(unused_for=50, now=now)
    assert {entry.key for entry in gone} == {damaged.key, old.key}
    assert [entry.key for entry in cache.entries()] == [kept.key]


def test_a_manifest_comes_back_as_written(tmp_path):
    path = manifest_path(tmp_path, "tiny", "abc", "decode", 0)
    manifest = Manifest({"b1": "k1"}, compiled=1, reused=0, seconds=2.5, producer="pod-0")
    write_manifest(path, manifest)
    assert read_manifest(path) == manifest
    assert read_manifest(path.with_name("1.json")) is None
    assert manifest.digest == Manifest({"b1": "k1"}, 0, 1, 0.1, "pod-1").digest
