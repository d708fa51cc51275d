"""A thread beside the worker's own, with a connection of its own to a scheduler."""

import logging
import threading
from abc import ABC, abstractmethod

import zmq

from pds_engine.errors import GroupError
from pds_engine.keys import Keys
from pds_engine.messages import Hello
from pds_engine.wire import Link

logger = logging.getLogger("pds.worker")
_LAST_SECONDS = 1.0


class SideThread(ABC):
    """Says `hello` at `address`, and does its `work` until it is stopped or the scheduler has gone.

    When it fails, its connection ends: what that means to the group is the scheduler's to say.
    """

    def __init__(
        self,
        context: zmq.Context,  # type: ignore[type-arg]
        address: str,
        keys: Keys,
        hello: Hello,
    ) -> None:
        self._context, self._address, self._keys = context, address, keys
        self._hello = hello
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=hello.peer, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> bool:
        """Whether it has ended. It may be in a collective that nobody else comes to any more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_LAST_SECONDS + self.patience)
        return not self._thread.is_alive()

    patience = 1.0
    """Seconds between its looks at whether to stop, at most."""

    @abstractmethod
    def work(self, link: Link) -> None:
        """One turn, which takes `patience` at most if nothing comes."""

    def _run(self) -> None:
        try:
            link = Link(self._context, self._address, self._keys)
            try:
                link.send(self._hello)
                while not self._stopping.is_set() and not link.lost:
                    self.work(link)
            finally:
                link.close()
        except (GroupError, zmq.ZMQError) as error:
            logger.warning("%s of rank %d ends: %s", self._hello.peer, self._hello.rank, error)
