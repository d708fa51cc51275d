"""What the scheduler asks of whoever gathers rows for it."""

from collections.abc import Sequence
from typing import Protocol

from pds_engine.messages import Gathered


class GatherPort(Protocol):
    """One dp rank's end of the collective. One gather at a time is under way."""

    @property
    def descriptor(self) -> int:
        """Readable when `take` has something."""

    def gather(self, row: Sequence[int]) -> None:
        """Give this rank's row of the next pass. Does not block."""

    def take(self) -> Gathered | None:
        """The rows of all ranks, once they have come.

        Raises:
            RankLost: another dp rank is gone, or the ranks never met.
        """

    def close(self) -> None: ...
