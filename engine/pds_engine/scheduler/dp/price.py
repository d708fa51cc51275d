"""What prompts add to a pass of all dp ranks, as this rank measures it.

The unit is a pass without prompts: a ratio of durations, so that clocks need not agree. What ranks
have measured crosses with their rows, in tenths; the largest counts, on all ranks.
"""

from collections import deque
from dataclasses import dataclass, field
from statistics import median

from pds_engine.scheduler.cost import robust

KEPT = 32
"""Passes of either kind that count."""
REFIT = 4
"""Passes with prompts between two fits."""
GUESS = 20
"""Tenths that any prompts add, before both kinds have been measured."""
MOST = 640
"""Tenths; more would be a pass that something else held up."""


@dataclass(slots=True)
class Price:
    """The last passes, and what fits those with prompts: fixed + own · most + shared · all tokens.

    `most` are the tokens of prompts of the rank that has most of them: others that compute theirs
    in the same pass add nothing to that part, and that is what waiting for them saves.
    """

    fixed: int = GUESS
    """What any prompts add to a pass, in tenths of one without."""
    _own: float = 0.0
    _since: int = 0
    _without: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))
    _with: deque[tuple[int, int, float]] = field(default_factory=lambda: deque(maxlen=KEPT))

    def add(self, most: int, tokens: int, seconds: float) -> None:
        """A pass took so long.

        Args:
            most: tokens of prompts on the rank that computed most of them; 0: no rank had any.
            tokens: of prompts on all ranks.
            seconds: of its step; not positive: nothing was measured.
        """
        if seconds <= 0:
            return
        if not most:
            self._without.append(seconds)
            return
        self._with.append((most, tokens, seconds))
        self._since += 1
        if self._since >= REFIT and self._without:
            self._since = 0
            self._fit()

    def of(self, tokens: int) -> int:
        """What so many tokens of this rank's prompts add beyond `fixed`, in tenths."""
        return min(round(self._own * tokens), MOST)

    def _fit(self) -> None:
        unit = median(self._without) / 10
        most, tokens, seconds = (
            list(map(float, column)) for column in zip(*self._with, strict=True)
        )
        once = [1.0] * len(seconds)
        fixed, own = median(seconds), 0.0
        for columns in ([once, most, tokens], [once, most], [once, tokens]):
            terms = robust(columns, seconds)
            if terms is not None and min(terms) >= 0:
                fixed, own = terms[0], terms[1] * (columns[1] is most)
                break
        self._own = own / unit
        self.fixed = min(max(0, round(fixed / unit) - 10), MOST)
