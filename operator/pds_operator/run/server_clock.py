"""The time as the API server has it: what we compare with the times that objects carry.

Deadlines, backoffs and marks outlive the operator and its node; by the server's clock they mean the
same to whichever replica reads them.
"""

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime


class ServerClock:
    """Set by the Date of its answers, which is in whole seconds; ours until the first one."""

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._ahead = wall() - monotonic()

    def now(self) -> float:
        """Unix seconds. Our own clock may jump meanwhile."""
        return self._monotonic() + self._ahead

    def asked(self) -> float:
        """What `heard` wants to know of when a question was put."""
        return self._monotonic()

    def heard(self, date: str, asked: float) -> None:
        """An answer of that Date. A clock that it does not contradict is left as it is."""
        try:
            server_time = parsedate_to_datetime(date).timestamp()
        except (TypeError, ValueError, OverflowError):
            return
        least, most = server_time - self._monotonic(), server_time + 1.0 - asked
        if not least <= self._ahead <= most:
            self._ahead = (least + most) / 2
