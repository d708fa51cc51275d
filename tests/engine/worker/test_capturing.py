"""Which workers capture their decode steps, and what they say."""

import logging
from typing import Any

import pytest
import torch
from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError
from pds_engine.worker import capturing
from pds_engine.worker.capturing import capture

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class FakeRunner:
    """Captures graphs of these sizes, or fails."""

    def __init__(self, sizes: tuple[int, ...] = (1, 2), error: str = "") -> None:
        self._sizes, self._error = sizes, error
        self.asked = 0

    def capture(self, by: object) -> tuple[int, ...]:
        self.asked += 1
        if self._error:
            raise RuntimeError(self._error)
        return self._sizes


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "CudaCapture", object)


@pytest.mark.parametrize(
    ("keys", "device", "captures"),
    [
        ({}, GPU, True),
        ({"role": "decode"}, GPU, True),
        ({}, CPU, False),
        ({"role": "prefill"}, GPU, False),
        ({"cuda_graphs": False}, GPU, False),
    ],
)
def test_who_captures(keys: dict[str, Any], device: torch.device, captures: bool) -> None:
    runner = FakeRunner()
    capture(EngineConfig.model_validate(keys), runner, device)  # type: ignore[arg-type]
    assert runner.asked == captures


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((1, 2, 4), "decode steps are replayed as graphs of [1, 2, 4] tokens"),
        ((), "decode steps are launched kernel by kernel"),
    ],
)
def test_the_log_says_which_graphs_there_are(
    sizes: tuple[int, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pds.worker"):
        capture(EngineConfig(), FakeRunner(sizes), GPU)  # type: ignore[arg-type]
    assert caplog.messages == [said]


def test_a_failed_capture_names_the_setting() -> None:
    runner = FakeRunner(error="operation not permitted when stream is capturing")
    with pytest.raises(ConfigError, match=r"^cuda_graphs: .*: operation not permitted") as raised:
        capture(EngineConfig(), runner, GPU)  # type: ignore[arg-type]
    assert "cuda_graphs: false (engine.cudaGraphs)" in raised.value.hint
