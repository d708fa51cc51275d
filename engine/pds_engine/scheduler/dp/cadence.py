"""Steps of one fixed shape without a gather (dp.gather: none): when all run, and when they rest.

Every rank issues a step whenever it may, with rows or idle, for as long as any request of the group
decodes. dp rank 0 conducts: it hears who is alive, and when nobody is it names the step before
which all halt. A rank issues step k once step k - depth is done, so none can be further ahead of
the conductor than `depth` steps: while the conductor holds step n back, nobody passes n + depth.
It goes on to there when all have said that they know.
"""

from collections.abc import Iterator

from pds_engine.errors import ProtocolError
from pds_engine.messages import Halt, Halted, Lives, Message, Wake


class Cadence:
    """One rank's part. What it yields goes to dp rank 0, or from there to all others."""

    def __init__(self, dp_rank: int, dp: int, depth: int) -> None:
        self.running = False
        self._dp_rank = dp_rank
        self._dp = dp
        self._depth = depth
        self._alive = [False] * dp
        """Whose requests decode, as far as this rank was told: of its own, and the conductor's of
        all."""
        self._halt: int | None = None
        """The step before which all halt."""
        self._unaware: set[int] = set()
        """Ranks that have not said that they know it; the conductor holds its next step back."""
        self._woken = -1
        """The step from which the conductor has said to run."""

    def may_issue(self, step_id: int) -> bool:
        """Whether this rank may issue that step, its next one."""
        return self.running and not self._unaware and (self._halt is None or step_id < self._halt)

    def look(self, alive: bool, step_id: int) -> Iterator[Message]:
        """Whether requests decode here, before step `step_id`; what is to be said of it."""
        if alive != self._alive[self._dp_rank]:
            self._alive[self._dp_rank] = alive
            if self._dp_rank:
                yield Lives(dp_rank=self._dp_rank, alive=alive)
        if step_id == self._halt:
            self._halt = None
            self.running = self._woken == step_id
        if self._dp_rank:
            return
        if not self.running and any(self._alive):
            self.running = True
            yield Wake(pass_id=step_id)
        elif self.running and self._halt is None and not any(self._alive):
            self._halt = step_id + self._depth
            self._unaware = set(range(1, self._dp))
            yield Halt(before=self._halt)

    def heard(self, message: Message, step_id: int) -> Iterator[Message]:
        """What another rank says, while this one's next step is `step_id`; the answer.

        Raises:
            ProtocolError: this rank has gone further than it can have.
        """
        match message:
            case Lives():
                self._alive[message.dp_rank] = message.alive
            case Halted():
                self._unaware.discard(message.dp_rank)
            case Halt():
                if step_id > message.before:
                    raise ProtocolError(f"halt before step {message.before}, {step_id} is next")
                self._halt = message.before
                yield Halted(dp_rank=self._dp_rank)
            case Wake():
                self._woken = message.pass_id
                self.running = self.running or step_id == message.pass_id
