"""When a rank enters the next pass, and when all of them rest.

A pass is a gather that all ranks take part in. While there is work they enter one after another,
each as soon as it may issue another step. After one whose rows are all empty, all park, since all
see the same rows. The first that has work again wakes the others (Wake) and enters.

No rank waits for work of its own to join a pass: a rank that did would keep the others waiting in
it, and a rank whose pipeline runs dry would never be full again (LLMServingSim #65).
"""

from collections.abc import Sequence

from pds_engine.errors import ProtocolError
from pds_engine.scheduler.dp.rows import SyncRow


class Passes:
    """This rank's place in the sequence of passes."""

    def __init__(self) -> None:
        self.next_id = 0
        """The pass that it enters next, or is in."""
        self.gathering = False
        """It has given its row, and the others' have not come."""
        self.parked = True
        self._woken = -1
        """The latest pass that another rank has entered, as far as it said."""

    def enters(self, work: bool) -> bool:
        """Whether to enter the next pass now, given that a step may be issued.

        Args:
            work: this rank has rows to compute.
        """
        return not self.gathering and (not self.parked or work or self._woken >= self.next_id)

    def enter(self) -> bool:
        """Enter the next pass; returns whether the others have to be woken."""
        wakes = self.parked and self._woken < self.next_id
        self.gathering = True
        return wakes

    def wake(self, pass_id: int) -> None:
        """Another rank has entered `pass_id`, perhaps before this one has seen the last one's end.

        Raises:
            ProtocolError: it is further than a rank can be.
        """
        if pass_id > self.next_id + 1:
            raise ProtocolError(f"a dp rank is in pass {pass_id}, the next one is {self.next_id}")
        self._woken = max(self._woken, pass_id)

    def gathered(self, rows: Sequence[SyncRow]) -> None:
        """The pass has its rows.

        Raises:
            ProtocolError: they are another pass's.
        """
        if not self.gathering or rows[0].pass_id != self.next_id:
            raise ProtocolError(f"rows of pass {rows[0].pass_id} came in pass {self.next_id}")
        self.gathering = False
        self.next_id += 1
        self.parked = not any(row.decode_tokens or row.prompt_tokens for row in rows)
