"""The compile cache: one build a key, whatever else happens on the volume."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cache_pods import INPUTS, build, leftovers, never, pod_on
from pds_kernels.cache import (
    Cache,
    Manifest,
    entries,
    own_folder,
    prune,
    read_manifest,
    seal,
    write_manifest,
)
from pds_kernels.cache.files import Files
from pds_kernels.cache.manifest import manifest_path
from pds_kernels.cache.store import hmac_key


def counted(log: Path) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(0.2)  # long enough for every rival to arrive
        build(folder)

    return run


def lying(cache: Cache, key: str) -> Path:
    """Where the volume has the artefact."""
    return cache.volume.shelf.folder("k", key)


def test_an_artefact_is_built_once_and_found_by_the_next_pod(pod, tmp_path):
    first = pod(producer="pod-0").get("k", INPUTS, build)
    again = pod().get("k", INPUTS, never)
    assert (first.built, again.built) == (True, False)
    assert first.shared and again.shared
    assert first.key == again.key and first.folder != again.folder
    assert (again.folder / "kernel.so").read_bytes() == b"code"
    meta = json.loads((again.folder / "meta.json").read_text())
    assert meta["inputs"] == INPUTS and meta["producer"] == "pod-0"


def test_what_a_pod_has_found_is_its_own(pod, tmp_path):
    """The volume may vanish between warm-up and engine, which share the pod's folder."""
    pod().get("k", INPUTS, build)
    warm = pod()
    kept = warm.find("k", INPUTS)
    (tmp_path / "volume").rename(tmp_path / "gone")
    assert warm.get("k", INPUTS, never).folder == kept.folder
    assert warm.volume.trouble == ""


def test_any_input_changes_the_key():
    others = ({**INPUTS, name: "other"} for name in INPUTS)
    keys = {seal.cache_key(each, seal_key) for each in (INPUTS, *others) for seal_key in ("a", "b")}
    assert len(keys) == 2 * (1 + len(INPUTS))


def test_an_artefact_in_the_place_of_another_is_damaged(pod):
    """Its seal is good: whoever writes the volume has copied it there."""
    maker, other = pod(), {**INPUTS, "source": "of another kernel"}
    for inputs in (INPUTS, other):
        maker.get("k", inputs, build)
    shelf = maker.volume.shelf
    place = shelf.folder("k", maker.key(other))
    shutil.rmtree(place)
    shutil.copytree(shelf.folder("k", maker.key(INPUTS)), place)
    finder = pod()
    assert finder.find("k", other) is None
    assert finder.damage == {maker.key(other): "meta.json has no valid seal"}
    known = {each.key: each.intact for each in entries(finder)}
    assert known == {maker.key(INPUTS): True, maker.key(other): False}


def test_a_link_that_leads_nowhere_is_a_stranger(pod):
    maker = pod()
    made = maker.get("k", INPUTS, build)
    (lying(maker, made.key) / "odd").symlink_to("/nowhere")
    assert [each.intact for each in entries(pod())] == [False]
    assert [each.key for each in prune(pod(), unused_for=1e9, now=time.time())] == [made.key]


def test_two_toolchains_work_side_by_side_on_one_volume(pod):
    """While nodes are upgraded, pods of both come and go."""
    made = {}
    for toolchain in ("g++ 12", "g++ 14", "g++ 12", "g++ 14"):

        def compiles(folder: Path, toolchain: str = toolchain) -> None:
            (folder / "kernel.so").write_text(toolchain)

        inputs = {**INPUTS, "toolchain": toolchain}
        found = pod().get("k", inputs, never if toolchain in made else compiles)
        assert (found.folder / "kernel.so").read_text() == toolchain
        made[toolchain] = found.key
    assert {entry.key for entry in entries(pod())} == set(made.values())


DAMAGES = {
    "flip": "kernel.so has changed",
    "cut": "kernel.so has changed",
    "extra": "other.so is a stranger",
    "lose": "kernel.so is missing",
    "unseal": "meta.json has no valid seal",
    "uncommit": "it is unfinished",
}


def damage(folder: Path, how: str) -> None:
    match how:
        case "flip":
            (folder / "kernel.so").write_bytes(b"evil")
        case "cut":
            (folder / "kernel.so").write_bytes(b"")
        case "extra":
            (folder / "other.so").write_bytes(b"evil")
        case "lose":
            (folder / "kernel.so").unlink()
        case "unseal":
            (folder / "meta.json").write_text("{")
        case "uncommit":
            (folder / ".committed").unlink()


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_artefact_is_rebuilt(pod, how):
    key = pod().get("k", INPUTS, build).key
    damage(lying(pod(), key), how)
    cache = pod()
    assert cache.find("k", INPUTS) is None
    made = cache.get("k", INPUTS, build)
    assert made.built and made.shared
    assert cache.damage == {made.key: DAMAGES[how]}
    assert cache.volume.trouble == ""
    assert (pod().get("k", INPUTS, never).folder / "kernel.so").read_bytes() == b"code"


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_copy_is_taken_from_the_volume_again(pod, how):
    cache = pod()
    damage(cache.get("k", INPUTS, build).folder, how)
    again = cache.get("k", INPUTS, never)
    assert (again.folder / "kernel.so").read_bytes() == b"code"
    assert cache.damage == {again.key: DAMAGES[how]}


def test_an_artefact_sealed_by_a_stranger_is_not_loaded(pod):
    pod(b"stranger").get("k", INPUTS, build)
    assert pod().find("k", INPUTS) is None


def test_a_sealed_name_leads_nowhere_else(pod, tmp_path):
    """Without a secret anybody can seal."""
    cache = pod(b"")
    key = cache.get("k", INPUTS, build).key
    folder = lying(cache, key)
    meta = json.loads((folder / "meta.json").read_text())
    del meta["seal"]
    meta["files"] = {"../../../../../out.so": meta["files"]["kernel.so"]}
    (folder / "meta.json").write_bytes(seal.sealed(meta, hmac_key(b"")))
    reader = pod(b"")
    assert reader.find("k", INPUTS) is None
    assert reader.damage == {key: "meta.json has no valid seal"}


def test_holders_of_two_secrets_share_a_volume_and_leave_each_other_alone(pod):
    ours, theirs = pod(), pod(b"stranger")
    kept = theirs.get("k", INPUTS, build)
    assert ours.get("k", INPUTS, build).built
    assert prune(ours, unused_for=1e9, now=time.time()) == []
    assert [entry.key for entry in entries(theirs)] == [kept.key]
    assert pod(b"stranger").find("k", INPUTS)


def _rival(root: Path, log: Path, barrier) -> None:
    barrier.wait()
    pod_on(root).get("k", INPUTS, counted(log))


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

    pod_on(root, lease=0.4).get("k", INPUTS, run)


def test_a_killed_compiler_is_replaced_when_its_lease_ends(tmp_path):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    holder = context.Process(target=_hang, args=(tmp_path, started))
    holder.start()
    assert started.wait(10)
    holder.kill()
    holder.join(10)
    cache = pod_on(tmp_path, lease=0.4)
    assert cache.get("k", INPUTS, build, timeout=20).built
    assert cache.volume.trouble == ""


def test_a_failed_build_publishes_nothing_and_frees_the_key(pod, tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("the compiler died")

    cache = pod()
    with pytest.raises(RuntimeError, match="the compiler died"):
        cache.get("k", INPUTS, fail)
    assert list(entries(cache)) == []
    assert leftovers(tmp_path) == []
    assert cache.get("k", INPUTS, build).built


def test_two_builders_at_once_leave_one_artefact(pod, tmp_path):
    """A holder stopped for longer than its lease comes back and publishes second."""
    cache = pod()

    def overtaken(folder: Path) -> None:
        next((tmp_path / "volume" / "v1" / "locks").iterdir()).unlink()
        rival = threading.Thread(target=lambda: pod().get("k", INPUTS, build))
        rival.start()
        rival.join(10)
        build(folder)

    assert cache.get("k", INPUTS, overtaken).shared
    assert [entry.intact for entry in entries(cache)] == [True]
    assert leftovers(tmp_path) == []


def test_prune_removes_the_damaged_and_the_unused(pod):
    cache, now = pod(), time.time()
    kept = cache.get("k", INPUTS, build)
    damaged = cache.get("k", {"a": "1"}, build)
    (lying(cache, damaged.key) / "kernel.so").write_bytes(b"x")
    old = cache.get("k", {"a": "2"}, build)
    os.utime(lying(cache, old.key) / ".committed", (now - 100, now - 100))
    gone = prune(cache, unused_for=50, now=now)
    assert {entry.key for entry in gone} == {damaged.key, old.key}
    assert [entry.key for entry in entries(cache)] == [kept.key]


def test_prune_removes_what_killed_compilers_have_left_whatever_is_asked_for(pod, tmp_path):
    """Up to 30 days by default, on a volume that is full of it."""
    cache, now = pod(), time.time()
    cache.get("k", INPUTS, build)
    stale, fresh = (cache.volume.shelf.scratch / name for name in ("stale", "fresh"))
    for folder in (stale, fresh):
        folder.mkdir()
        (folder / "half").write_bytes(b"x")
    lock = cache.volume.locks / "stale"
    lock.write_bytes(b"x")
    for path in (stale, lock):
        os.utime(path, (now - 4000, now - 4000))
    assert prune(cache, unused_for=30 * 86400, now=now) == []
    assert leftovers(tmp_path) == ["volume/v1/tmp/fresh"]


def test_prune_removes_a_predecessors_when_it_is_asked_to(pod):
    """A retained claim is full of what a key sealed that nobody has any more."""
    pod(b"gone").get("k", INPUTS, build)
    ours, later = pod(), time.time() + 100
    assert prune(ours, unused_for=50, now=later) == []
    assert len(prune(ours, unused_for=50, now=later, any_key=True)) == 1
    assert pod(b"gone").find("k", INPUTS) is None


def test_a_manifest_comes_back_as_written(tmp_path):
    path = manifest_path(tmp_path, "tiny", "abc", "decode", 0)
    manifest = Manifest({"b1": "k1"}, compiled=1, reused=0, seconds=2.5, producer="pod-0")
    write_manifest(Files(), path, manifest)
    write_manifest(Files(), path, manifest)
    assert read_manifest(path) == manifest
    assert [found.name for found in path.parent.iterdir()] == ["0.json"]
    assert read_manifest(path.with_name("1.json")) is None
    assert manifest.digest == Manifest({"b1": "k1"}, 0, 1, 0.1, "pod-1").digest


def test_a_folder_of_our_own_is_found_again_and_a_strangers_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ours = own_folder("cache")
    assert own_folder("cache") == ours
    assert ours.stat().st_mode & 0o777 == 0o700
    ours.chmod(0o777)
    other = own_folder("cache")
    assert other != ours and other.stat().st_mode & 0o777 == 0o700
    ours.rmdir()
    ours.symlink_to(other)
    assert own_folder("cache") not in (ours, other)


@pytest.mark.parametrize("name", ["org/model", "/etc/x", "../../x", "..", ".", "a\0b"])
def test_no_name_of_a_model_leads_a_manifest_off_its_folder(tmp_path, name):
    path = manifest_path(tmp_path, name, "", "unified", "0")
    assert path.parents[2].parent == tmp_path / "v1" / "manifests"
    assert path.resolve() == path
