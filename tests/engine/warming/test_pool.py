"""A pool of which one process may die: real processes."""

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_builds import answer
from pds_engine.warming.pool import Ended, Pool, processes

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def pool() -> Iterator[Pool[str, str]]:
    with Pool(2, processes(SPAWN, answer, str), str) as pool:
        yield pool


def ended(pool: Pool[str, str], count: int) -> dict[str, Ended[str, str]]:
    found: dict[str, Ended[str, str]] = {}
    while len(found) < count:
        found |= {each.task: each for each in pool.ended(timeout=30)}
    return found


def test_processes_are_used_again(pool: Pool[str, str]) -> None:
    pids = set()
    for task in ("a", "b", "c"):
        pool.begin(task)
        name, pid = str(ended(pool, 1)[task].result).split()
        assert name == task
        pids.add(pid)
    assert len(pids) == 1 and pool.free == 2


def test_one_that_dies_takes_no_other_with_it(pool: Pool[str, str]) -> None:
    pool.begin("die")
    pool.begin("b")
    assert pool.free == 0
    found = ended(pool, 2)
    assert (found["die"].result, found["die"].exitcode) == (None, -9)
    assert str(found["b"].result).startswith("b ")
    pool.begin("exit")
    pool.begin("c")
    found = ended(pool, 2)
    assert (found["exit"].exitcode, pool.free) == (3, 2)
    assert str(found["c"].result).startswith("c ")


def test_what_a_dead_process_has_started_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "pid"
    monkeypatch.setenv("PDS_TEST_ORPHAN", str(note))
    with Pool(1, processes(SPAWN, answer, str), str) as pool:
        pool.begin("orphan")
        assert ended(pool, 1)["orphan"].exitcode == -9
    assert_gone(int(note.read_text()))


def assert_gone(pid: int) -> None:
    """It is no more, or a zombie whose new parent has not looked yet."""
    end = time.monotonic() + 10
    while (stat := Path(f"/proc/{pid}/stat")).exists():
        if stat.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        assert time.monotonic() < end
        time.sleep(0.01)


def test_leaving_ends_those_that_hang() -> None:
    with Pool(2, processes(SPAWN, answer, str), str) as pool:
        pool.begin("a")
        pid = int(str(ended(pool, 1)["a"].result).split()[1])
        pool.begin("hang")
        assert pool.ended(timeout=0.05) == []
        assert os.getpgid(pid) == pid
    assert_gone(pid)
