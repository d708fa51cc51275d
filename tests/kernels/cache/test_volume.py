"""A volume that is full, read-only, slow or gone costs sharing alone, and the words say what it is.

Every operation on the volume is refused in turn, by every error of the system that storage gives.
Where this machine lets us mount a file system, a real one is filled; else its model is.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cache_pods import leftovers
from pds_kernels.cache import Cache, PlaceError, entries, prune
from pds_kernels.cache.files import Files
from refusing import Script

INPUTS = {"source": "abc"}
CONTENT = os.urandom(70_000)
WORDS = {
    errno.ENOSPC: r"is full.*: give it more room, or free some by `pds-engine cache prune`",
    errno.EDQUOT: r"is above its quota: give it more room",
    errno.EROFS: r"is read-only: mount it writable",
    errno.EACCES: r"refuses uid \d+ \(Permission denied: .*\): give that user write access",
    errno.EPERM: r"refuses uid \d+ \(Operation not permitted: .*\): give that user write access",
    errno.ESTALE: r"is gone or broken \(Stale file handle: .*\): look at the storage",
    errno.ENOTCONN: r"is gone or broken \(Transport endpoint is not connected: .*\): look at",
    errno.ENOENT: r"is gone or broken \(No such file or directory: .*\): look at the storage",
    errno.EIO: r"is gone or broken \(Input/output error: .*\): look at the storage",
    errno.ETIMEDOUT: r"is gone or broken \(Connection timed out: .*\): look at the storage",
    errno.EMFILE: r"failed \(Too many open files: .*\): look at the storage",
}

NAMES = errno.errorcode.get


def build(folder: Path) -> None:
    (folder / "kernel.so").write_bytes(CONTENT)
    (folder / "more").mkdir()
    (folder / "more" / "kernel.json").write_bytes(b"{}")


def never(folder: Path) -> None:
    pytest.fail("compiled twice")


def pod(root: Path, name: str, files: Callable[[], Files] = Files, **options: float) -> Cache:
    return Cache(root / "volume", root / name, b"key", files=files, **options)


def assert_served(cache: Cache, private: Path) -> None:
    """By what the pod has of its own, without a look at the volume."""
    cache.volume.avoid("not to be touched")
    kept = cache.get("k", INPUTS, never)
    assert kept.folder.is_relative_to(private)
    assert (kept.folder / "kernel.so").read_bytes() == CONTENT


def assert_named(cache: Cache, root: Path, number: int) -> None:
    place = f"the compile cache's volume at {root / 'volume'} "
    assert cache.volume.trouble.startswith(place)
    assert re.search(WORDS[number], cache.volume.trouble), cache.volume.trouble


@pytest.fixture
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk takes longer to flush than all else here."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


def operations(root: Path, *, warm: bool) -> int:
    """How many an undisturbed pod needs."""
    if warm:
        pod(root, "maker").get("k", INPUTS, build)
    script = Script(errno.EIO)
    pod(root, "pod", script).get("k", INPUTS, build)
    return len(script.seen)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("number", WORDS, ids=NAMES)
@pytest.mark.usefixtures("unflushed")
def test_whatever_operation_fails_the_pod_is_served_and_nothing_is_left(
    tmp_path, number, warm
) -> None:
    count = operations(tmp_path / "undisturbed", warm=warm)
    assert count > (5 if warm else 25)
    for n in range(count):
        root = tmp_path / str(n)
        if warm:
            pod(root, "maker").get("k", INPUTS, build)
        script = Script(number, lambda at, n=n: at == n)
        cache = pod(root, "pod", script)
        made = cache.get("k", INPUTS, build)
        assert len(script.failed) == 1
        if not made.shared:
            assert_named(cache, root, number)
        else:
            assert pod(root, "next").get("k", INPUTS, never).shared
        # What may not be removed, nor marked, or not be known for ours, stays until it is stale.
        stays = ("remove", f"read {made.key}", f"write {made.key}")
        assert len(leftovers(root)) <= script.seen[n].startswith(stays), script.seen[n]
        assert_served(cache, root / "pod")
        shutil.rmtree(root)


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.ESTALE], ids=NAMES)
@pytest.mark.usefixtures("unflushed")
def test_a_volume_that_fails_from_some_moment_on_is_not_asked_for_long(
    tmp_path, number, warm
) -> None:
    for n in range(operations(tmp_path / "undisturbed", warm=warm)):
        root = tmp_path / str(n)
        if warm:
            pod(root, "maker").get("k", INPUTS, build)
        script = Script(number, lambda at, n=n: at >= n)
        cache = pod(root, "pod", script)
        made = cache.get("k", INPUTS, build)
        if not made.shared:
            assert_named(cache, root, number)
        assert len(script.failed) < 16
        assert_served(cache, root / "pod")
        shutil.rmtree(root)


def test_a_full_volume_still_gives_what_it_has(tmp_path) -> None:
    pod(tmp_path, "maker").get("k", INPUTS, build)
    full = Script(errno.ENOSPC)
    full.fails = lambda at: full.seen[at].startswith(("make", "write", "flush", "touch"))
    cache = pod(tmp_path, "pod", full)
    assert cache.get("k", INPUTS, never).shared
    assert cache.get("k", {"other": "1"}, build).built
    assert cache.volume.trouble
    assert cache.get("k", INPUTS, never)  # which was read, and may be read again


@pytest.fixture
def hanging(tmp_path: Path):
    """A file that nobody writes: whoever opens it to read waits, as on a dead NFS server."""
    made: list[Path] = []

    def hang(path: Path) -> None:
        path.unlink(missing_ok=True)
        os.mkfifo(path)
        made.append(path)

    yield hang
    for path in made:  # so that no thread is left waiting
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))


@pytest.mark.parametrize("name", ["kernel.so", "meta.json"])
def test_a_volume_that_hangs_is_given_up(tmp_path, hanging, name) -> None:
    key = pod(tmp_path, "maker").get("k", INPUTS, build).key
    cache = pod(tmp_path, "pod", patience=0.2)
    hanging(cache.volume.shelf.folder("k", key) / name)
    if name == "kernel.so":  # a listing does not show that it is no file
        assert (cache.volume.shelf.folder("k", key) / name).is_fifo()
    made = cache.get("k", INPUTS, build)
    assert made.built and not made.shared
    assert cache.volume.trouble == (
        f"the compile cache's volume at {tmp_path / 'volume'} does not answer "
        f"(0.2 s: read v1/k/{key[:2]}/{key}/{name}): look at the storage behind it"
    )
    assert_served(cache, tmp_path / "pod")


def test_every_operation_that_hangs_is_bounded(tmp_path) -> None:
    free = threading.Event()

    class Hanging(Files):
        seen = 0
        at = 0

        def begin(self, operation: str, path: Path) -> None:
            kind = type(self)
            kind.seen += 1
            if kind.seen - 1 == kind.at:
                free.wait(30)

    count = operations(tmp_path / "undisturbed", warm=False)
    try:
        for n in range(count):
            Hanging.seen, Hanging.at = 0, n
            root = tmp_path / str(n)
            cache = pod(root, "pod", Hanging, patience=0.05)
            made = cache.get("k", INPUTS, build)
            assert made.shared or "does not answer (0.05 s: " in cache.volume.trouble
            assert_served(cache, root / "pod")
    finally:
        free.set()


def test_slow_beyond_all_bounds_is_as_good_as_hanging(tmp_path) -> None:
    class Slow(Files):
        def begin(self, operation: str, path: Path) -> None:
            threading.Event().wait(0.08)

    cache = pod(tmp_path, "pod", Slow, patience=0.1)
    assert cache.get("k", INPUTS, build).built
    assert "does not answer (0.1 s: " in cache.volume.trouble


def test_a_fault_of_the_pods_own_folder_is_not_the_volumes(tmp_path) -> None:
    (tmp_path / "pod").write_text("in the way")
    cache = pod(tmp_path, "pod")
    with pytest.raises(PlaceError, match=f"the pod's own folder {tmp_path}/pod is gone or broken"):
        cache.get("k", INPUTS, build)
    assert cache.volume.trouble == ""
    pod(tmp_path, "maker").get("k", INPUTS, build)
    with pytest.raises(PlaceError, match="the pod's own folder"):
        pod(tmp_path, "pod").find("k", INPUTS)


def test_a_compiler_without_room_says_whose_room_it_is(tmp_path, monkeypatch) -> None:
    """torch reports it in its own words."""
    full = os.statvfs_result((4096, 4096, 16, 0, 0, 9, 9, 9, 9, 9))
    monkeypatch.setattr(os, "statvfs", lambda _: full)

    def fail(folder: Path) -> None:
        raise RuntimeError("unexpected pos 128 vs 0")

    cache = pod(tmp_path, "pod")
    cache.volume.avoid("the volume is full")
    words = r"own folder .*/pod is full \(0 B of 64 KiB free\): .*unexpected pos 128 vs 0"
    with pytest.raises(PlaceError, match=words):
        cache.get("k", INPUTS, fail)


def small(tmp_path: Path, what: str) -> dict[str, object]:
    """What on_mount.py reports: of a real file system, or of its model if none can be mounted."""
    program = [sys.executable, str(Path(__file__).with_name("on_mount.py")), what, str(tmp_path)]
    real = ["unshare", "--user", "--map-root-user", "--mount", *program]
    for words in (real, [*program, "model"]):
        try:
            ran = subprocess.run(words, capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            continue
        if ran.returncode == 0:
            found: dict[str, object] = json.loads(ran.stdout)
            print(found)
            return found
    raise AssertionError(ran.stderr)


def test_a_volume_of_64_kib(tmp_path) -> None:
    found = small(tmp_path, "full")
    assert found["built"] == [True, True] and found["shared"] == [False, False]
    assert found["left"] == []
    for trouble in found["troubles"]:
        assert trouble == (
            f"the compile cache's volume at {tmp_path}/volume has too little space (64 KiB of "
            "64 KiB free, 1 MiB asked for): give it more room, or free some by "
            "`pds-engine cache prune`"
        )


def test_a_read_only_volume(tmp_path) -> None:
    found = small(tmp_path, "read-only")
    assert found["built"] == [False, True]
    assert found["troubles"][-1] == (
        f"the compile cache's volume at {tmp_path}/volume is read-only: mount it writable"
    )


def test_prune_makes_room_on_a_volume_without_any(tmp_path) -> None:
    found = small(tmp_path, "prune")
    assert found["before"] == 0
    assert found["removed"] == 1
    assert found["after"] > 0


def test_what_prune_cannot_do_is_told(tmp_path) -> None:
    pod(tmp_path, "maker").get("k", INPUTS, build)
    cache = pod(tmp_path, "pod", Script(errno.EROFS, lambda at: True))
    with pytest.raises(Exception, match="is read-only: mount it writable"):
        prune(cache, unused_for=0, now=1e12)
    with pytest.raises(Exception, match="is read-only"):
        list(entries(cache))
