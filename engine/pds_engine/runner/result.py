"""What the last stage makes of a step: tensors on the device, and StepDone once they are read."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pds_engine.messages import StepDone, TokenLogprobs
from pds_engine.runner.sampling import UNSOUND
from pds_engine.runner.scoring import Scores


@dataclass(frozen=True, slots=True)
class Result:
    """A step's result. R rows are sampled."""

    tokens: Tensor | None = None
    """[R] int64; None: no row is sampled."""
    asked: tuple[int, ...] = ()
    """Which of the R rows ask for log-probabilities."""
    scores: Scores | None = None
    """Theirs; None: no row asks."""
    prompts: tuple[tuple[Scores, ...], ...] = ()
    """Of each part of a prompt that is scored, by positions."""

    def copied(self, copy: Callable[[Tensor], Tensor]) -> "Result":
        """The same with each tensor's copy in its place."""
        return Result(
            None if self.tokens is None else copy(self.tokens),
            self.asked,
            None if self.scores is None else self.scores.copied(copy),
            tuple(tuple(one.copied(copy) for one in part) for part in self.prompts),
        )

    def read(self, step_id: int, elapsed: float) -> StepDone:
        """Of tensors on the host."""
        tokens = [] if self.tokens is None else self.tokens.tolist()
        chances: list[TokenLogprobs | None] = [None] * len(tokens)
        if self.scores is not None:
            for at, found in zip(self.asked, self.scores.read(), strict=True):
                chances[at] = found
        return StepDone(
            step_id=step_id,
            tokens=tuple(max(token, 0) for token in tokens),
            logprobs=tuple(chances),
            unsound=tuple(at for at, token in enumerate(tokens) if token == UNSOUND),
            prompt_logprobs=tuple(
                tuple(one for scores in part for one in scores.read()) for part in self.prompts
            ),
            elapsed=elapsed,
        )
