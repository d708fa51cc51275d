"""Which process of a pod is named as the cause when all of them end."""

from pathlib import Path

from pds_engine.ending import End, LastWords, cause

LOST = LastWords("rank 1 (stage 0, dp rank 1) has ended", 10)
NOTICED = LastWords("the scheduler of dp rank 0 has ended", 20)


def test_who_only_noticed_may_be_over_first() -> None:
    words = {"scheduler-1": NOTICED, "scheduler-0": LOST}
    assert cause({"scheduler-1": 1}, words) == End("scheduler-0", 1, LOST.error)


def test_a_killed_process_is_the_cause_whatever_others_say() -> None:
    words = {"scheduler-0": LOST}
    assert cause({"scheduler-0": 1, "worker-1": -9}, words) == End("worker-1", -9)
    assert cause({"worker-1": -9}, words) == End("worker-1", -9)


def test_a_lone_process_speaks_for_itself() -> None:
    assert cause({"scheduler": 1}, {"scheduler": LOST}) == End("scheduler", 1, LOST.error)
    assert cause({"server": 3}, {}) == End("server", 3)


def test_last_words_come_back(tmp_path: Path) -> None:
    first, second = LastWords.now("a"), LastWords.now("b")
    assert first.at < second.at
    first.write(tmp_path, "worker-0")
    assert LastWords.read(tmp_path, "worker-0") == first
    assert LastWords.read(tmp_path, "worker-1") is None
