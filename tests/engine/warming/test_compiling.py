"""Real processes and caches, builders that cost nothing: who builds what, and who is killed."""

import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_builds import Attempts, Fake, builds
from pds_engine.warming.compiling import KilledTwice, Made, compile_all
from pds_engine.warming.pool import Pool, processes
from pds_kernels.cache import Cache, entries
from pds_kernels.cache.flight import Flight, published
from pds_kernels.cache.sharing import Try, WorkQueue

SPAWN = multiprocessing.get_context("spawn")
Warm = Callable[..., dict[str, Made]]


@pytest.fixture
def warm(tmp_path: Path) -> Warm:
    """A warm-up of these builds on two processes, with short leases."""

    def run(
        *fakes: Fake, timeout: float = 60, lease: float = 0.4, patience: float = 30
    ) -> dict[str, Made]:
        work = Attempts(tmp_path, "pod", fakes, lease)
        queue = WorkQueue([fake.name for fake in fakes], lease=lease, patience=patience)
        with Pool(2, processes(SPAWN, work, Try), Made) as pool:
            return dict(compile_all(queue, pool, timeout))

    return run


@pytest.mark.parametrize("how", ["itself", "compiler", "memory"])
def test_a_compiler_that_is_killed_is_tried_again_alone(
    tmp_path: Path, warm: Warm, how: str
) -> None:
    fakes = [Fake(name, tmp_path / "log", seconds=0.05) for name in "abc"]
    made = warm(Fake("big", tmp_path / "log", dies=1, how=how), *fakes)
    assert {
        name: each.artefact.built for name, each in made.items() if each.artefact
    } == dict.fromkeys(("a", "b", "c", "big"), True)
    assert list(made)[-1] == "big"
    found = builds(tmp_path / "log")
    assert {name: len(times) for name, times in found.items()} == {"a": 1, "b": 1, "c": 1, "big": 2}
    assert found["big"][-1] == 0
    came = [(each.artefact.built, each.artefact.shared) for each in made.values() if each.artefact]
    assert came == [(True, True)] * 4


def test_a_compiler_that_is_killed_when_alone_too_ends_the_warm_up(
    tmp_path: Path, warm: Warm
) -> None:
    with pytest.raises(KilledTwice) as caught:
        warm(Fake("big", tmp_path / "log", dies=9), Fake("a", tmp_path / "log"))
    assert caught.value.key == "big"
    assert {name: len(times) for name, times in builds(tmp_path / "log").items()} == {
        "a": 1,
        "big": 2,
    }
    assert len(list(entries(Cache(tmp_path / "volume", tmp_path / "b", b"key")))) == 1


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("error", "artefact big: ValueError: no such instruction"),
        ("segfault", "artefact big: the process that compiled it ended by signal 11"),
    ],
)
def test_what_is_no_lack_of_memory_is_not_tried_again(
    tmp_path: Path, warm: Warm, how: str, words: str
) -> None:
    with pytest.raises(RuntimeError, match=words):
        warm(Fake("big", tmp_path / "log", dies=9, how=how))
    assert len(builds(tmp_path / "log")["big"]) == 1


def held(root: Path, name: str) -> Flight:
    """A lock of another pod, which beats and never delivers."""
    cache = Cache(root / "volume", root / "other", b"key", lease=0.4)
    cache.volume.try_out()
    flight = Flight(cache.volume, cache.key({"name": name}), 0.4)
    assert flight.attempt()
    return flight


def test_a_held_key_keeps_no_worker_from_the_others(tmp_path: Path, warm: Warm) -> None:
    """Its holder is waited for so long; then it is compiled for this pod alone."""
    holder = held(tmp_path, "a")
    made = warm(*(Fake(name, tmp_path / "log") for name in "abcd"), lease=20, patience=2)
    holder.release()
    assert set(made) == set("abcd") and list(made)[-1] == "a"
    assert [each.artefact.shared for each in made.values() if each.artefact] == [True] * 3 + [False]
    assert "has a lock that another process holds for 2 s" in made["a"].volume


def test_the_time_out_is_one_for_all(tmp_path: Path, warm: Warm) -> None:
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        warm(Fake("a", tmp_path / "log", seconds=60), Fake("b", tmp_path / "log"), timeout=1.5)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("keys", [24])
def test_eight_pods_that_begin_together_build_each_key_once(tmp_path: Path, keys: int) -> None:
    script = Path(__file__).with_name("sharing_pod.py")
    pods = [
        subprocess.Popen(
            [sys.executable, script, tmp_path, str(number), "8", str(keys), "0.1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    try:
        for pod in pods:
            assert pod.stdout and pod.stdout.readline() == "ready\n"
        for pod in pods:
            assert pod.stdin
            pod.stdin.write("go\n")
            pod.stdin.flush()
        said = [json.loads(pod.communicate(timeout=120)[0]) for pod in pods]
    finally:
        for pod in pods:
            pod.kill()
            pod.wait()
    found = builds(tmp_path / "log")
    assert {name: len(times) for name, times in found.items()} == {f"k{n}": 1 for n in range(keys)}
    assert [each["built"] + each["other"] for each in said] == [keys] * 8
    assert sum(each["built"] for each in said) == keys
    locks = list((tmp_path / "volume/v1/locks").iterdir())
    assert len(locks) == keys and all(published(lock.read_bytes()) for lock in locks)
