"""vLLM's offline engine in one process."""

import itertools
import time
from typing import Any

from drive import Prompts, serve
from vllm import LLM, SamplingParams


class Vllm:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._engine = LLM(**settings["arguments"]).llm_engine
        self._ids = itertools.count()

    def first(self, prompts: Prompts) -> list[int]:
        names, found = self._add(prompts, 1), {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                found[output.request_id] = output.outputs[0].token_ids[0]
        return [found.get(name, -1) for name in names]

    def prefill(self, prompts: Prompts) -> float:
        begun = time.perf_counter()
        self._add(prompts, 1)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return time.perf_counter() - begun

    def decode(self, prompts: Prompts, steps: int) -> list[float]:
        # Steps begin to count when all prompts have a token, so that there are so many with all.
        self._add(prompts, steps + 8)
        had: dict[str, int] = {}
        seconds: list[float] = []
        before = 0.0
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                had[output.request_id] = len(output.outputs[0].token_ids)
            now = time.perf_counter()
            if before and len(seconds) < steps:
                seconds.append(now - before)
            before = now if len(had) == len(prompts) else 0.0
        return seconds

    def _add(self, prompts: Prompts, tokens: int) -> list[str]:
        greedy = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        names = [f"request-{next(self._ids)}" for _ in prompts]
        for name, prompt in zip(names, prompts, strict=True):
            self._engine.add_request(name, {"prompt_token_ids": list(prompt)}, greedy)
        return names


if __name__ == "__main__":
    serve(Vllm)
