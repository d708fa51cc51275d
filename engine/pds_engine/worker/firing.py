"""Wakes the worker's loop when a step's event fires: a GPU's events have no descriptor to poll."""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from pds_engine.parallel.launch import Event

logger = logging.getLogger("pds.worker")


class Firing:
    """Waits for events on a thread of its own, one after another, and calls `wake` after each.

    The thread begins with the first event: on a CPU steps are over when they are launched, and
    there is none.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def watch(self, event: Event) -> None:
        """Call `wake` once `event` has fired, and those before it."""
        self._events.put(event)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="events", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            event = self._events.get()
            try:
                event.wait()
            except RuntimeError as error:  # of the device: the loop asks the event, and ends by it
                logger.warning("a step's event failed: %s", error)
            self._wake()
