"""Who is blamed for a step that does not end: exact cases over the ranks' last reports."""

from typing import Any

import pytest
from pds_engine.messages import Progress, Traffic
from pds_engine.parallel.watch import SILENCE, Heard, blame, describe

NOW = 100.0


def heard(rank: int, doing: str, step: int, *, at: float = NOW - 0.5, **keys: Any) -> Heard:
    """A report of `rank`; by default it has done the step before the one it is at."""
    values = {"done": step - 1, "peer": -1, "seconds": 60.0, "mailbox": 1, "plans": (), **keys}
    return Heard(
        Progress(rank=rank, doing=doing, step=step, traffic=Traffic(rank=rank), **values), at
    )


def ranks(*reports: Heard) -> dict[int, Heard]:
    return {report.progress.rank: report for report in reports}


CASES = [
    (
        "the last stage computes",
        ranks(heard(0, "idle", 9, done=9), heard(1, "compute", 7)),
        1,
        "rank 1 (stage 1) was computing step 7 for 60.5 s",
    ),
    (
        "the first computes, all others wait for it in a row",
        ranks(heard(0, "compute", 7), heard(1, "hidden", 7, peer=0), heard(2, "hidden", 7, peer=1)),
        0,
        "rank 0 (stage 0) was computing step 7 for 60.5 s",
    ),
    (
        "a rank that waits is silent: whatever it waits for, it would have said so",
        ranks(heard(0, "compute", 8), heard(1, "hidden", 7, peer=0, at=NOW - 9.0)),
        1,
        "rank 1 (stage 1) was waiting since 60.0 s for the hidden states of step 7 by "
        "rank 0 (stage 0) when it fell silent 9.0 s ago",
    ),
    (
        "two are silent: the longer one",
        ranks(heard(0, "idle", 9, at=NOW - 5), heard(1, "compute", 7, at=NOW - 6)),
        1,
        "rank 1 (stage 1) was computing step 7 when it fell silent 6.0 s ago",
    ),
    (
        "what was sent has not come",
        ranks(heard(0, "idle", 9, done=9), heard(1, "hidden", 7, peer=0)),
        1,
        "rank 1 (stage 1) was waiting since 60.0 s for the hidden states of step 7 by "
        "rank 0 (stage 0), which has sent them",
    ),
    (
        "the output was sent and has not come",
        ranks(heard(0, "output", 7, peer=1), heard(1, "hidden", 8, peer=0, done=7)),
        0,
        "rank 0 (stage 0) was waiting since 60.0 s for the output of step 7 by "
        "rank 1 (stage 1), which has sent them",
    ),
    (
        "everyone waits for another",
        ranks(heard(0, "output", 7, peer=1, done=6), heard(1, "hidden", 7, peer=0)),
        1,
        "rank 1 (stage 1) was waiting since 60.0 s for the hidden states of step 7 by "
        "rank 0 (stage 0); ranks wait in a circle: 1 → 0 → 1",
    ),
    (
        "a rank has the order and does nothing",
        ranks(heard(0, "idle", 6, done=6), heard(1, "hidden", 7, peer=0)),
        0,
        "rank 0 (stage 0) was idle, and has not begun step 7",
    ),
    (
        "a rank has never reported",
        ranks(heard(0, "idle", 9, done=9)),
        1,
        "rank 1 (stage 1) has never reported",
    ),
    (
        "the result is lost on its way to the scheduler",
        ranks(heard(0, "idle", 9, done=9), heard(1, "idle", 9, done=9)),
        1,
        "rank 1 (stage 1) has finished step 7, and its result has not come",
    ),
]


@pytest.mark.parametrize(("reports", "rank", "why"), [case[1:] for case in CASES])
def test_blame(reports: dict[int, Heard], rank: int, why: str) -> None:
    count = max(2, len(reports))
    found = blame(reports, 7, count, 1, NOW)
    assert (found.rank, found.why) == (rank, why)


def test_a_shard_that_lags_behind_its_stage_is_blamed_before_those_that_wait_in_a_collective():
    reports = ranks(
        heard(0, "idle", 7, done=7),
        heard(1, "idle", 7, done=7),
        heard(2, "compute", 7),
        heard(3, "compute", 6),
    )
    assert blame(reports, 7, 4, 2, NOW).rank == 3


def test_a_dp_rank_that_lags_behind_holds_up_its_whole_stage():
    """Two stages of two dp ranks with two shards each: rank 3 computes, and all wait for it."""
    reports = ranks(
        heard(0, "compute", 7),
        heard(1, "compute", 7),
        heard(2, "compute", 7),
        heard(3, "compute", 6),
        *(heard(rank, "hidden", 7, peer=rank - 4) for rank in range(4, 8)),
    )
    found = blame(reports, 7, 8, 2, NOW, dp=2)
    assert (found.rank, found.why) == (
        3,
        "rank 3 (stage 0, dp rank 1) was computing step 6 for 60.5 s",
    )


def test_a_dp_rank_whose_plan_has_not_come_is_blamed_by_the_others_that_wait_in_the_mlp():
    reports = ranks(heard(0, "compute", 7), heard(1, "idle", 6, done=6))
    found = blame(reports, 7, 2, 1, NOW, dp=2)
    assert (found.rank, found.why) == (
        1,
        "rank 1 (stage 0, dp rank 1) was idle, and has not begun step 7",
    )
    assert describe(reports[1], 1, NOW, dp=2).startswith("rank 1 (stage 0, dp rank 1) was idle; ")


@pytest.mark.parametrize("late", [0.1, SILENCE - 0.1])
def test_a_late_report_is_no_silence(late: float) -> None:
    reports = ranks(heard(0, "compute", 7, at=NOW - late), heard(1, "hidden", 7, peer=0))
    assert "computing" in blame(reports, 7, 2, 1, NOW).why


def test_a_dump_says_all_of_a_rank() -> None:
    report = heard(1, "hidden", 7, peer=0, plans=("step 6: …", "step 7: …"))
    assert describe(report, 1, NOW) == (
        "rank 1 (stage 1) was waiting since 60.0 s for the hidden states of step 7 by "
        "rank 0 (stage 0); heard 0.5 s ago; step 6 is done; 1 orders wait; "
        "last plans: step 6: …; step 7: …"
    )
