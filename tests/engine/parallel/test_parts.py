"""How the tokens of a pass are shared out, and the plans that cannot be."""

import pytest
from pds_engine.errors import ProtocolError
from pds_engine.messages import Row, StepPlan
from pds_engine.parallel.parts import Parts, parts


def plan(tokens: int, padded: int, *dp_tokens: int) -> StepPlan:
    rows = (Row(slot=0, gen=1, start=0, length=tokens),) if tokens else ()
    return StepPlan(
        step_id=4,
        rows=rows,
        expects_output=False,
        depends_on=-1,
        padded_tokens=padded,
        dp_tokens=dp_tokens,
    )


@pytest.mark.parametrize(
    ("made", "tp", "dp", "batch", "stage"),
    [
        (plan(3, 3), 1, 1, (3,), (3,)),
        (plan(3, 4), 2, 1, (2, 2), (2, 2)),
        (plan(3, 8), 4, 1, (2, 2, 2, 2), (2, 2, 2, 2)),
        (plan(3, 3, 3, 5), 1, 2, (3,), (3, 5)),
        (plan(3, 4, 4, 8), 2, 2, (2, 2), (2, 2, 4, 4)),
        (plan(0, 0, 0, 8), 2, 2, (0, 0), (0, 0, 4, 4)),
        (plan(0, 8, 8, 8), 2, 2, (4, 4), (4, 4, 4, 4)),
        (plan(0, 0, 0, 0, 0, 1), 1, 4, (0,), (0, 0, 0, 1)),
    ],
)
def test_parts(made, tp, dp, batch, stage):
    assert parts(made, tp, dp, 0) == Parts(batch, stage)


@pytest.mark.parametrize(
    ("made", "tp", "dp", "says"),
    [
        (plan(3, 3), 2, 1, "step 4 is padded to 3 tokens, which 2 ranks of attention cannot share"),
        (plan(5, 4), 2, 1, "step 4 has 5 tokens and is padded to 4"),
        (plan(1, 0), 1, 1, "step 4 has 1 tokens and is padded to 0"),
        (plan(3, 3), 1, 2, r"dp rank 0 of 2 is padded to 3 tokens, and the dp ranks have \[\]"),
        (plan(3, 3, 2, 3), 1, 2, r"padded to 3 tokens, and the dp ranks have \[2, 3\]"),
        (plan(3, 3, 3), 1, 2, r"padded to 3 tokens, and the dp ranks have \[3\]"),
        (plan(4, 4, 4, 3), 2, 2, r"cannot share out the \[4, 3\] tokens"),
        (plan(0, 0, 0, 0), 1, 2, r"\[0, 0\] tokens of the dp ranks evenly, or nobody has one"),
    ],
)
def test_plans_that_cannot_be(made, tp, dp, says):
    with pytest.raises(ProtocolError, match=says):
        parts(made, tp, dp, 0)
