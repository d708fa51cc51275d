"""Layers with a window read nothing behind it, wherever chunks and pages cut it."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pds_engine.messages import Row, Sampling, StepDone
from pds_engine.spec import GqaSpec
from runner_driver import Driver, Reference, Sequence_

GREEDY = Sampling(max_tokens=10, temperature=0.0)
LENGTHS = (5, 36, 37, 38, 74, 130)
"""Around the window of 37 tokens that the models have."""


class Forgetting(Driver):
    """Before a step, pages wholly behind a layer's window become NaN in that layer."""

    def __init__(self, path: Path, **keys: Any) -> None:
        super().__init__(path, **keys)
        self.held: dict[int, list[int]] = {}
        self.forgotten = 0

    def admit(self, slot: int, prompt: Sequence[int], sampling: Sampling, seed: int) -> Sequence_:
        free = list(self.free)
        request = super().admit(slot, prompt, sampling, seed)
        self.held[slot] = free[: -(-len(prompt) // self.page_size)]
        return request

    def step(self, rows: Sequence[Row], padded: int = 0) -> StepDone:
        for row in rows:
            self.held[row.slot] += row.new_pages
            for layer, pages in zip(self.decoder.layers, self.layers, strict=True):
                assert isinstance(layer.attention, GqaSpec)
                if layer.attention.window is not None:
                    behind = max(0, row.start + 1 - layer.attention.window) // self.page_size
                    self.forget(self.held[row.slot][:behind], pages)
        return super().step(rows, padded)

    def forget(self, held: list[int], layer: tuple[Any, ...]) -> None:
        self.forgotten += len(held)
        for tensor in layer:
            tensor[held] = float("nan")


@pytest.mark.parametrize(
    "family", ["MistralForCausalLM", "Gemma2ForCausalLM", "GptOssForCausalLM", "Phi3ForCausalLM"]
)
@pytest.mark.parametrize(("page_size", "chunk"), [(16, 32), (7, 33), (1, 19), (64, 20)])
def test_nothing_behind_the_window_is_read(
    family: str, page_size: int, chunk: int, models: dict[str, Path], reference: Reference
) -> None:
    """Every layer has one, or every other; with soft caps, with sinks, and plain."""
    source = random.Random(9)
    asked = [[source.randrange(3, 320) for _ in range(length)] for length in LENGTHS]
    driver = Forgetting(models[family], page_size=page_size)
    answers = driver.run(asked, GREEDY, chunk=chunk, budget=70)
    assert driver.forgotten
    for prompt, answer in zip(asked, answers, strict=True):
        assert answer.output == reference(models[family], prompt, 10), len(prompt)
