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


def test_a_prefill_rank_decodes_nothing() -> None:
    both = (WarmStep("decode", 1), WarmStep("decode", 128))
    chunks = (WarmStep("extend", 1), WarmStep("extend", 128))
    assert steps("prefill", (1, 128)) == chunks
    assert steps("decode", (1, 128)) == steps("unified", (1, 128)) == both + chunks
