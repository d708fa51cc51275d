"""What a process that has an engine does: takes orders on stdin, answers on stdout.

An order and an answer are a line of JSON each. This runs in the engine's own environment, which has
nothing of ours, so it imports the standard library alone.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

Prompts = Sequence[Sequence[int]]


class Engine(Protocol):
    """An engine that has loaded its model."""

    def first(self, prompts: Prompts) -> list[int]:
        """The likeliest token after each prompt, -1 where the engine does not say."""
        ...

    def prefill(self, prompts: Prompts) -> float:
        """Seconds until each prompt has its first token, all asked at once."""
        ...

    def decode(self, prompts: Prompts, steps: int) -> list[float]:
        """Seconds of each of `steps` steps in which every prompt gets a token, greedily."""
        ...


def serve(load: Callable[[dict[str, Any]], Engine]) -> None:
    """Load what the command line says, and carry out orders until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    begun = time.perf_counter()
    engine = load(json.loads(sys.argv[1]))
    say(answers, {"answer": time.perf_counter() - begun})
    for line in sys.stdin:
        order = json.loads(line)
        match order["do"]:
            case "first":
                answer: Any = engine.first(order["prompts"])
            case "prefill":
                answer = engine.prefill(order["prompts"])
            case "decode":
                answer = engine.decode(order["prompts"], order["steps"])
            case other:
                raise SystemExit(f"error: no such order: {other}")
        say(answers, {"answer": answer})


def say(answers: Any, what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()
