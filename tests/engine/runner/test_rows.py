"""Bringing some tokens' states together from the ranks that hold them."""

import pytest
import torch
from pds_engine.parallel.collectives import ALONE, Collectives
from pds_engine.runner.rows import together

WANTED = [(), (0,), (7,), (3, 1, 6), (0, 1, 2, 3, 4, 5, 6, 7), (7, 0, 7), tuple(range(2, 5))]
STATES = torch.arange(24.0).view(8, 3)


def found(collectives: Collectives) -> list[list[list[float]]]:
    each = 8 // collectives.size
    part = STATES[collectives.rank * each :][:each]
    return [together(part, wanted, collectives).tolist() for wanted in WANTED]


@pytest.mark.parametrize("size", [2, 4])
def test_every_rank_has_the_same_rows_in_the_order_that_was_asked_for(size, ranks):
    expected = [STATES[list(wanted)].tolist() for wanted in WANTED]
    assert ranks(found, size) == [expected] * size
    assert found(ALONE) == expected
