import pytest
from pds_engine.errors import ProtocolError
from pds_engine.scheduler.dp.rows import WIDTH, SyncRow, tokens, unpack


def test_rows_cross_as_whole_numbers_and_come_back():
    rows = (SyncRow(7, 3, 512, 900, 3, 1, 0, 1, 0, 1, 25, 60), SyncRow(7))
    assert unpack([number for row in rows for number in row], 2) == rows


def test_a_rank_in_another_pass_is_found_out():
    with pytest.raises(ProtocolError, match=r"different passes: \[7, 8\]"):
        unpack([*SyncRow(7), *SyncRow(8)], 2)


def test_a_row_is_missing():
    with pytest.raises(ProtocolError, match=f"2 ranks send {WIDTH} each"):
        unpack([*SyncRow(7)], 2)


def test_tokens_of_a_pass_with_and_without_prompts():
    mixed, apart = SyncRow(1, 3, 512, beside=3), SyncRow(1, 5, 64, beside=0)
    rows = (mixed, SyncRow(1, 2), apart, SyncRow(1, 0, 64))
    assert tokens(rows, prompts=True) == (515, 2, 64, 64)
    assert tokens(rows, prompts=False) == (3, 2, 5, 0)
