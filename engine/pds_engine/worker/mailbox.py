"""Messages from another thread of this process, for a loop that polls descriptors."""

import os
from queue import Empty, SimpleQueue

from pds_engine.messages import Message


class Mailbox:
    """Any thread may `put`; one takes. `descriptor` is readable while something may be waiting.

    A ZMQ socket belongs to one thread; the transfer thread's reports reach the wire through here.
    """

    def __init__(self) -> None:
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._queue: SimpleQueue[Message] = SimpleQueue()

    def put(self, message: Message) -> None:
        self._queue.put(message)
        self.wake()

    def wake(self) -> None:
        """Make `descriptor` readable: something else has happened that the loop looks at."""
        os.eventfd_write(self.descriptor, 1)

    def take(self) -> list[Message]:
        """All that is waiting, oldest first."""
        try:
            os.eventfd_read(self.descriptor)
        except BlockingIOError:
            return []
        found = []
        while True:
            try:
                found.append(self._queue.get_nowait())
            except Empty:
                return found

    def close(self) -> None:
        os.close(self.descriptor)
