import pytest
from pds_engine.errors import ProtocolError
from pds_engine.kv.layout import ByteRun
from pds_engine.kv.transfer.expectations import MAX_FORGOTTEN, Expectations, OpenAnswer


@pytest.fixture
def expectations() -> Expectations:
    found = Expectations(pages=10, page_bytes=100)
    found.expect("t", 2, (3, 4, 7))
    return found


def test_only_the_expected_epoch_opens(expectations: Expectations) -> None:
    assert [expectations.answer("t", epoch) for epoch in (1, 2, 3)] == [
        OpenAnswer.REFUSE,
        OpenAnswer.OPEN,
        OpenAnswer.WAIT,
    ]
    assert expectations.answer("other", 1) is OpenAnswer.WAIT


def test_what_was_forgotten_is_refused_for_good(expectations: Expectations) -> None:
    expectations.forget("t", 2)
    expectations.forget("never seen", 1)
    assert expectations.answer("t", 2) is OpenAnswer.REFUSE
    assert expectations.answer("never seen", 1) is OpenAnswer.REFUSE
    assert expectations.fault("t", 2, [ByteRun(0, 300, 10)]) is not None


def test_forgetting_an_older_epoch_leaves_the_newer(expectations: Expectations) -> None:
    expectations.forget("t", 1)
    assert expectations.answer("t", 2) is OpenAnswer.OPEN
    expectations.expect("t", 3, (5,))
    assert expectations.answer("t", 2) is OpenAnswer.REFUSE
    assert expectations.answer("t", 3) is OpenAnswer.OPEN


@pytest.mark.parametrize(
    ("run", "fine"),
    [
        (ByteRun(0, 300, 100), True),
        (ByteRun(0, 300, 200), True),  # pages 3 and 4
        (ByteRun(0, 399, 1), True),
        (ByteRun(0, 400, 101), False),  # one byte into page 5
        (ByteRun(0, 299, 2), False),
        (ByteRun(0, 700, 101), False),
        (ByteRun(0, 350, 400), False),
        (ByteRun(0, -100, 100), False),
        (ByteRun(0, 300, 0), False),
        (ByteRun(0, 300, -5), False),
        (ByteRun(0, 2**62, 2**40), False),
    ],
)
def test_bytes_outside_the_pages_are_a_fault(
    expectations: Expectations, run: ByteRun, fine: bool
) -> None:
    assert (expectations.fault("t", 2, [run]) is None) == fine
    assert expectations.fault("t", 1, [run]) is not None


def test_pages_that_do_not_exist_cannot_be_expected(expectations: Expectations) -> None:
    with pytest.raises(ProtocolError, match="outside the pool's 10"):
        expectations.expect("u", 1, (10,))


def test_tombstones_are_bounded(expectations: Expectations) -> None:
    for i in range(MAX_FORGOTTEN + 5):
        expectations.forget(f"t{i}", 1)
    assert expectations.answer("t4", 1) is OpenAnswer.WAIT
    assert expectations.answer("t5", 1) is OpenAnswer.REFUSE
