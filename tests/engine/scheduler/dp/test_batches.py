"""S2, row by row."""

import pytest
from pds_engine.scheduler.dp.batches import needs_idle_batch, needs_padding, padded, shapes


@pytest.mark.parametrize(
    ("dp", "gathered", "expected"),
    [
        # nothing is gathered: dp alone decides
        (1, None, False),
        (2, None, True),
        (8, None, True),
        # gathered: some rank has tokens
        (1, (0,), False),
        (1, (5,), True),
        (2, (0, 0), False),
        (2, (0, 1), True),
        (2, (1, 0), True),
        (4, (0, 0, 0, 512), True),
        (4, (1, 1, 1, 1), True),
    ],
)
def test_who_runs_an_idle_batch(dp, gathered, expected):
    assert needs_idle_batch(dp, gathered) is expected


@pytest.mark.parametrize("batch", [False, True])
def test_padding_goes_with_the_batch_and_with_nothing_else(batch):
    assert needs_padding(batch) is batch


@pytest.mark.parametrize(
    ("tokens", "tp", "expected"),
    [
        (0, 1, 0),
        (1, 1, 1),
        (17, 1, 17),
        (0, 2, 0),
        (1, 2, 2),
        (2, 2, 2),
        (3, 2, 4),
        (17, 2, 18),
        (17, 4, 20),
    ],
)
def test_tokens_are_padded_to_a_multiple_of_tp(tokens, tp, expected):
    assert padded(tokens, tp) == expected


@pytest.mark.parametrize(
    ("tokens", "tp", "extends", "expected"),
    [
        ((3,), 2, False, (4,)),
        ((3,), 2, True, (4,)),
        # as even as that pays
        ((3, 4), 1, False, (4, 4)),
        ((1, 1, 1, 2), 1, False, (2, 2, 2, 2)),
        ((3, 4), 2, False, (4, 4)),
        # an even gather would double the work
        ((0, 4), 1, False, (0, 4)),
        ((0, 3), 2, False, (0, 4)),
        ((1, 8, 1, 1), 1, False, (1, 8, 1, 1)),
        # a pass that extends is never even: idle ranks stay without tokens
        ((0, 512), 2, True, (0, 512)),
        ((511, 512), 2, True, (512, 512)),
        ((300, 512), 1, True, (300, 512)),
        # nobody has any
        ((0, 0), 2, False, (0, 0)),
    ],
)
def test_the_shapes_of_a_pass(tokens, tp, extends, expected):
    assert shapes(tokens, tp, extends=extends) == expected
