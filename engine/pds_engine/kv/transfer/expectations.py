"""Which transfers this rank's pages are held for, and who may write where. Pure.

A peer may ask to open a transfer before its Expect has come (the worker was in a step): it waits.
A transfer that was forgotten is refused for good: its pages may belong to another request by now.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from pds_engine.errors import ProtocolError
from pds_engine.kv.layout import ByteRun

MAX_FORGOTTEN = 4096
"""Forgotten transfers that are remembered. An older one waits in vain instead of being refused."""


class OpenAnswer(Enum):
    """The answer to a peer that asks to open a transfer."""

    OPEN = "open"
    WAIT = "wait"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class ExpectedTransfer:
    epoch: int
    pages: frozenset[int]


class Expectations:
    """The transfers that this rank expects, by id."""

    def __init__(self, pages: int, page_bytes: int) -> None:
        self._pages = range(pages)
        self._page_bytes = page_bytes
        self._expected: dict[str, ExpectedTransfer] = {}
        self._forgotten: OrderedDict[tuple[str, int], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._expected)

    def expect(self, transfer: str, epoch: int, pages: Iterable[int]) -> None:
        """From now on `transfer` at `epoch` may write `pages`, and at no other epoch.

        Raises:
            ProtocolError: a page that this rank does not have.
        """
        held = frozenset(pages)
        if not all(page in self._pages for page in held):
            raise ProtocolError(f"transfer {transfer}: pages outside the pool's {len(self._pages)}")
        self._expected[transfer] = ExpectedTransfer(epoch, held)
        self._forgotten.pop((transfer, epoch), None)

    def forget(self, transfer: str, epoch: int) -> None:
        """From now on nothing of `transfer` at `epoch` is placed."""
        found = self._expected.get(transfer)
        if found is not None and found.epoch == epoch:
            del self._expected[transfer]
        self._forgotten[transfer, epoch] = None
        while len(self._forgotten) > MAX_FORGOTTEN:
            self._forgotten.popitem(last=False)

    def answer(self, transfer: str, epoch: int) -> OpenAnswer:
        """The answer to a peer that asks to open `transfer` at `epoch`."""
        if (transfer, epoch) in self._forgotten:
            return OpenAnswer.REFUSE
        found = self._expected.get(transfer)
        if found is None or found.epoch < epoch:
            return OpenAnswer.WAIT
        return OpenAnswer.OPEN if found.epoch == epoch else OpenAnswer.REFUSE

    def fault(self, transfer: str, epoch: int, runs: Iterable[ByteRun]) -> str | None:
        """Why these runs must not be placed; None: every byte belongs to the transfer's pages."""
        found = self._expected.get(transfer)
        if found is None or found.epoch != epoch:
            return f"transfer {transfer} is not expected at epoch {epoch}"
        for run in runs:
            if run.length <= 0 or run.dst < 0:
                return f"not a run: {run.length} bytes at {run.dst}"
            first, last = (
                run.dst // self._page_bytes,
                (run.dst + run.length - 1) // self._page_bytes,
            )
            if not found.pages.issuperset(range(first, last + 1)):
                return f"pages {first}-{last} are not all held for transfer {transfer}"
        return None
