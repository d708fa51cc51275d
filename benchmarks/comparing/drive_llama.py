"""llama.cpp in one process, by its C interface."""

import ctypes
import time
from typing import Any

import llama_cpp as llama
from drive import Prompts, serve


class Llama:
    def __init__(self, settings: dict[str, Any]) -> None:
        llama.llama_backend_init()
        about = llama.llama_model_default_params()
        self._model = llama.llama_model_load_from_file(settings["file"].encode(), about)
        if not self._model:
            raise SystemExit(f"error: llama.cpp cannot load {settings['file']}")
        asked = llama.llama_context_default_params()
        asked.n_ctx = settings["tokens"]
        asked.n_batch = self._most = settings["batch"]
        asked.n_ubatch = settings["ubatch"]
        asked.n_seq_max = settings["requests"]
        asked.n_threads = asked.n_threads_batch = settings["threads"]
        asked.kv_unified = False  # a request reads its own keys alone
        self._context = llama.llama_init_from_model(self._model, asked)
        if not self._context:
            raise SystemExit("error: llama.cpp makes no context of these settings")
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(self._most, 0, 1)
        self._greedy = llama.llama_sampler_init_greedy()

    def first(self, prompts: Prompts) -> list[int]:
        tokens = self._compute(prompts)
        llama.llama_memory_clear(self._memory, True)
        return tokens

    def prefill(self, prompts: Prompts) -> float:
        begun = time.perf_counter()
        self._compute(prompts)
        taken = time.perf_counter() - begun
        llama.llama_memory_clear(self._memory, True)
        return taken

    def decode(self, prompts: Prompts, steps: int) -> list[float]:
        tokens, seconds = self._compute(prompts), []
        for step in range(steps):
            begun = time.perf_counter()
            self._batch.n_tokens = 0
            for at, (prompt, token) in enumerate(zip(prompts, tokens, strict=True)):
                self._put(token, len(prompt) + step, at, True)
            self._run()
            tokens = [self._sample(at) for at in range(len(prompts))]
            seconds.append(time.perf_counter() - begun)
        llama.llama_memory_clear(self._memory, True)
        return seconds

    def _compute(self, prompts: Prompts) -> list[int]:
        """The first token of each; as many prompts in a batch as it holds."""
        found: list[int] = []
        ends: list[int] = []
        self._batch.n_tokens = 0

        def flush() -> None:
            self._run()
            found.extend(self._sample(at) for at in ends)
            ends.clear()
            self._batch.n_tokens = 0

        for at, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                if self._batch.n_tokens == self._most:
                    flush()
                last = position == len(prompt) - 1
                if last:
                    ends.append(self._batch.n_tokens)
                self._put(token, position, at, last)
        flush()
        return found

    def _put(self, token: int, position: int, sequence: int, samples: bool) -> None:
        batch, at = self._batch, self._batch.n_tokens
        batch.token[at], batch.pos[at], batch.logits[at] = token, position, samples
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
        batch.n_tokens = at + 1

    def _run(self) -> None:
        if status := llama.llama_decode(self._context, self._batch):
            raise SystemExit(f"error: llama_decode says {status}")

    def _sample(self, at: int) -> int:
        token: int = llama.llama_sampler_sample(self._greedy, self._context, ctypes.c_int32(at))
        return token


if __name__ == "__main__":
    serve(Llama)
