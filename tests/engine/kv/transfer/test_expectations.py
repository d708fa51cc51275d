import pytest
from pds_engine.errors import ProtocolError
from pds_engine.kv.layout import Run
from pds_engine.kv.transfer.expectations import MAX_FORGOTTEN, Expectations, Verdict


@pytest.fixture
def expectations() -> Expectations:
    found = Expectations(pages=10, page_bytes=100)
    found.expect("t", 2, (3, 4, 7))
    return found


def test_only_the_expected_epoch_opens(expectations: Expectations) -> None:
    assert [expectations.verdict("t", epoch) for epoch in (1, 2, 3)] == [
        Verdict.REFUSE,
        Verdict.OPEN,
        Verdict.WAIT,
    ]
    assert expectations.verdict("other", 1) is Verdict.WAIT


def test_what_was_forgotten_is_refused_for_good(expectations: Expectations) -> None:
    expectations.forget("t", 2)
    expectations.forget("never seen", 1)
    assert expectations.verdict("t", 2) is Verdict.REFUSE
    assert expectations.verdict("never seen", 1) is Verdict.REFUSE
    assert expectations.fault("t", 2, [Run(0, 300, 10)]) is not None


def test_forgetting_an_older_epoch_leaves_the_newer(expectations: Expectations) -> None:
    expectations.forget("t", 1)
    assert expectations.verdict("t", 2) is Verdict.OPEN
    expectations.expect("t", 3, (5,))
    assert expectations.verdict("t", 2) is Verdict.REFUSE
    assert expectations.verdict("t", 3) is Verdict.OPEN


@pytest.mark.parametrize(
    ("run", "fine"),
    [
        (Run(0, 300, 100), True),
        (Run(0, 300, 200), True),  # pages 3 and 4
        (Run(0, 399, 1), True),
        (Run(0, 400, 101), False),  # one byte into page 5
        (Run(0, 299, 2), False),
        (Run(0, 700, 101), False),
        (Run(0, 350, 400), False),
        (Run(0, -100, 100), False),
        (Run(0, 300, 0), False),
        (Run(0, 300, -5), False),
        (Run(0, 2**62, 2**40), False),
    ],
)
def test_bytes_outside_the_pages_are_a_fault(
    expectations: Expectations, run: Run, fine: bool
) -> None:
    assert (expectations.fault("t", 2, [run]) is None) == fine
    assert expectations.fault("t", 1, [run]) is not None


def test_pages_that_do_not_exist_cannot_be_expected(expectations: Expectations) -> None:
    with pytest.raises(ProtocolError, match="outside the pool's 10"):
        expectations.expect("u", 1, (10,))


def test_tombstones_are_bounded(expectations: Expectations) -> None:
    for i in range(MAX_FORGOTTEN + 5):
        expectations.forget(f"t{i}", 1)
    assert expectations.verdict("t4", 1) is Verdict.WAIT
    assert expectations.verdict("t5", 1) is Verdict.REFUSE
