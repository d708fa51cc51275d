import pytest
from pds_engine.messages import Sampling
from pds_engine.scheduler.finish import finish_reason


@pytest.mark.parametrize(
    ("index", "token", "expected"),
    [
        (0, 5, None),
        (1, 2, None),  # a stop id before min_tokens tokens
        (2, 2, "stop"),
        (2, 3, "stop"),
        (8, 5, None),
        (9, 5, "length"),
        (9, 2, "stop"),  # both: the model had said enough
    ],
)
def test_finish_reason(index: int, token: int, expected: str | None) -> None:
    sampling = Sampling(max_tokens=10, min_tokens=2, stop_token_ids=(2, 3))
    assert finish_reason(sampling, index, token) == expected
