"""Workers of a compile pool that are threads: what a test has patched is patched in them, too."""

import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from pds_engine.warming.pool import Worker, serve
from pds_kernels.cache.sharing import Try


class _Thread:
    def __init__(self, end: Connection, work: Callable[..., object]) -> None:
        self.sentinel, self._ends = os.pipe()
        self._thread = threading.Thread(target=self._run, args=(end, work), daemon=True)
        self._thread.start()

    def _run(self, end: Connection, work: Callable[..., object]) -> None:
        try:
            serve(end, work, Try)
        finally:  # a pool waits for one that has failed until this is closed
            end.close()
            os.close(self._ends)

    def exitcode(self) -> int | None:
        self._thread.join(10)
        return None

    def kill(self) -> None:
        """A thread ends when its pool has closed the pipe."""
        self._thread.join(10)
        os.close(self.sentinel)


def threads(work: Callable[..., object]) -> Callable[[Connection], Worker]:
    return lambda end: _Thread(end, work)
