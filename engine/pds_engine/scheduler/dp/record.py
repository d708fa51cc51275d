"""What the prefill delayer did so far, by this rank's own clock: metrics, and a prompt's age."""

from collections import Counter
from dataclasses import dataclass, field

from pds_engine.scheduler.dp.delayer import Verdict


@dataclass(slots=True)
class DelayRecord:
    """The verdicts on passes in which some rank had prompts."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Passes by the verdict's reason."""
    ticks: int = 0
    """Passes that ran without prompts that there were."""
    seconds: float = 0.0
    """How long prompts of this rank waited, in all waits that are over."""
    _since: float | None = None

    def add(self, verdict: Verdict, own: bool, now: float, *, held: bool = True) -> None:
        """A pass has its verdict.

        Args:
            own: this rank had tokens of prompts in it.
            held: a prompt has a slot on this rank; without one, no wait of its own is under way.
        """
        if verdict.reason != "nothing":
            self.outcomes[verdict.reason] += 1
        if not verdict.runs:
            self.ticks += 1
            if own and self._since is None:
                self._since = now
        elif verdict.reason != "nothing":
            held = False
        if not held and self._since is not None:
            self.seconds += now - self._since
            self._since = None

    def held(self, now: float) -> float:
        """Seconds that prompts of this rank have waited in the wait under way."""
        return 0.0 if self._since is None else now - self._since
