"""Which steps a warm-up runs."""

import pytest
from pds_engine.runner.shape_plan import WarmStep, steps, token_counts


@pytest.mark.parametrize(
    ("sms", "tp", "expected"),
    [
        (78, 1, (1, 128, 576, 1216, 4992)),  # the part of sglang #26148
        (132, 1, (1, 128, 1024, 2112, 8448)),  # H100
        (148, 1, (1, 128, 1152, 2368, 9472)),  # B200
        (8, 1, (1, 128, 256, 512)),  # two counts are one
        (132, 8, (8, 128, 1024, 2112, 8448)),
        (78, 48, (48, 144, 576, 1248, 4992)),
    ],
)
def test_token_counts(sms: int, tp: int, expected: tuple[int, ...]) -> None:
    assert token_counts(sms, tp) == expected
    assert not any(count % tp for count in expected)


def test_a_prefill_rank_has_single_tokens_once() -> None:
    """Of a prompt of one token, or of a prompt one token longer than its chunks."""
    one, many = WarmStep("decode", 2), WarmStep("decode", 128)
    chunks = (WarmStep("extend", 2), WarmStep("extend", 128))
    assert steps("prefill", (2, 128)) == (one, *chunks)
    assert steps("decode", (2, 128)) == steps("unified", (2, 128)) == (one, many, *chunks)
