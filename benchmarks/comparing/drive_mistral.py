"""mistral.rs in one process, by its Python API: a stream a request."""

import itertools
import time
from typing import Any

from drive import Prompts, serve
from mistralrs import Architecture, ChatCompletionRequest, ModelDType, Runner, Which


class Mistral:
    def __init__(self, settings: dict[str, Any]) -> None:
        which = Which.Plain(
            model_id=settings["model"],
            arch=getattr(Architecture, settings["architecture"]),
            dtype=ModelDType.BF16,
        )
        most = settings["requests"]
        self._runner = Runner(which=which, max_seqs=most, prefix_cache_n=0, token_source="none")

    def first(self, prompts: Prompts) -> list[int]:
        texts = []
        for prompt in prompts:
            chunks = self._runner.send_chat_completion_request(asked(prompt, 1))
            texts.append("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
        # Where an answer begins with a space, the space is left out.
        words = [text.strip() for text in texts]
        return [int(word[1:]) if word.startswith("w") else -1 for word in words]

    def prefill(self, prompts: Prompts) -> float:
        begun = time.perf_counter()
        times = self._ask(prompts, 1)
        return max(each[0] for each in times) - begun

    def decode(self, prompts: Prompts, steps: int) -> list[float]:
        # Prompts are computed one after another: those that began early end early.
        answers = self._ask(prompts, 2 * steps)
        begun, ended = max(each[0] for each in answers), min(each[-1] for each in answers)
        times = [at for at in answers[0] if begun <= at <= ended]
        return [after - before for before, after in itertools.pairwise(times)][:steps]

    def _ask(self, prompts: Prompts, tokens: int) -> list[list[float]]:
        """When the tokens of each prompt came: of all the streams, the next token is read in turn.

        A runner takes one call at a time, and returns a stream at once.
        """
        streams = [
            self._runner.send_chat_completion_request(asked(prompt, tokens)) for prompt in prompts
        ]
        times: list[list[float]] = [[] for _ in prompts]
        left = list(zip(streams, times, strict=True))
        while left:
            for each in tuple(left):
                stream, seen = each
                if next(stream, None) is None:
                    left.remove(each)
                else:
                    seen.append(time.perf_counter())
        return times


def asked(ids: Any, tokens: int) -> ChatCompletionRequest:
    return ChatCompletionRequest(
        messages="".join(f" w{id}" for id in ids),
        model="default",
        max_tokens=tokens,
        temperature=0.0,
        stream=True,
        ignore_eos=True,
    )


if __name__ == "__main__":
    serve(Mistral)
