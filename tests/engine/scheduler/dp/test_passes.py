"""When a rank enters the next pass, by exact sequences."""

import pytest
from pds_engine.errors import ProtocolError
from pds_engine.scheduler.dp.passes import Passes
from pds_engine.scheduler.dp.rows import SyncRow

WORK, PROMPT = SyncRow(0, decode_tokens=1), SyncRow(0, prompt_tokens=8)


def through(passes: Passes, *rows: SyncRow) -> None:
    """One pass, with these rows."""
    passes.enter()
    passes.gathered([row._replace(pass_id=passes.next_id) for row in rows])


def test_a_parked_rank_enters_with_work_and_wakes_the_others():
    passes = Passes()
    assert not passes.enters(work=False)
    assert passes.enters(work=True)
    assert passes.enter()
    assert not passes.enters(work=True)  # it is in it


def test_a_woken_rank_enters_without_work_and_wakes_nobody():
    passes = Passes()
    passes.wake(0)
    assert passes.enters(work=False)
    assert not passes.enter()


@pytest.mark.parametrize("row", [WORK, PROMPT])
def test_ranks_enter_pass_after_pass_while_any_has_rows(row: SyncRow):
    passes = Passes()
    for _ in range(3):
        through(passes, SyncRow(0), row)
        assert not passes.parked
        assert passes.enters(work=False)
    assert not passes.enter()
    passes.gathered([SyncRow(3), SyncRow(3)])
    assert passes.parked
    assert not passes.enters(work=False)


def test_a_prompt_that_waits_parks_nobody():
    """Its rank proposes it again in the next pass, whatever the verdict was."""
    passes = Passes()
    through(passes, PROMPT, SyncRow(0))
    assert not passes.parked


def test_requests_without_rows_park_all():
    """What they wait for, such as pages that steps in flight hold, brings a row and wakes all."""
    passes = Passes()
    through(passes, SyncRow(0, running=3, pending_tokens=99), SyncRow(0))
    assert passes.parked


def test_a_wake_that_comes_before_the_last_rows():
    """The other has seen the end of pass 0, and is in pass 1 already."""
    passes = Passes()
    passes.enter()
    passes.wake(1)
    assert not passes.enters(work=True)
    passes.gathered([SyncRow(0), SyncRow(0)])
    assert passes.parked
    assert passes.enters(work=False)
    assert not passes.enter()


def test_a_wake_that_comes_again():
    """Twice, and after its pass: no harm."""
    passes = Passes()
    passes.wake(0)
    passes.wake(0)
    through(passes, WORK, SyncRow(0))
    through(passes, SyncRow(0), SyncRow(0))
    passes.wake(0)
    passes.wake(1)
    assert passes.parked
    assert not passes.enters(work=False)
    passes.wake(2)
    assert passes.enters(work=False)


def test_both_enter_at_once():
    """Each wakes the other: both are in the pass."""
    one, other = Passes(), Passes()
    assert one.enter()
    assert other.enter()
    one.wake(0)
    other.wake(0)
    for passes in (one, other):
        passes.gathered([WORK, PROMPT])
        assert passes.next_id == 1


def test_a_rank_that_is_further_than_it_can_be():
    passes = Passes()
    passes.wake(1)
    with pytest.raises(ProtocolError, match=r"^a dp rank is in pass 2, the next one is 0$"):
        passes.wake(2)


def test_rows_that_nobody_asked_for():
    passes = Passes()
    with pytest.raises(ProtocolError, match=r"^rows of pass 0 came in pass 0$"):
        passes.gathered([WORK, WORK])
    passes.enter()
    with pytest.raises(ProtocolError, match=r"^rows of pass 1 came in pass 0$"):
        passes.gathered([SyncRow(1), SyncRow(1)])
