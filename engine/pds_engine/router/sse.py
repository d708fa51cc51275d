"""Server-sent events as bytes: cut at event ends, without the engine's journal (engine.md §7)."""

import re

JOURNAL = b": pds "
"""What a journal comment begins with: `: pds <count> <ids>`, a line of its own before its event."""
_JOURNAL_LINE = re.compile(rb"^: pds [^\n]*\n\n?", re.MULTILINE)
_END = b"\n\n"


class Events:
    """Turns what arrives into whole events, so that an error can follow any of them."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """The events that are complete with `data`, without their journal; often just `data`."""
        if self._held or not data.endswith(_END):
            searched = max(0, len(self._held) - 1)
            self._held += data
            cut = self._held.rfind(_END, searched)
            if cut < 0:
                return b""
            data = bytes(self._held[: cut + 2])
            del self._held[: cut + 2]
        return strip(data)

    def rest(self) -> bytes:
        """What is left at the end of the stream."""
        data = bytes(self._held)
        self._held.clear()
        return strip(data)


def strip(events: bytes) -> bytes:
    """`events` without journal comments. JSON holds no raw line break: none can hide one."""
    if JOURNAL not in events:
        return events
    if events.startswith(JOURNAL) and events.find(JOURNAL, 1) < 0:
        cut = events.index(b"\n") + 1 if b"\n" in events else len(events)
        return events[cut + 1 :] if events.startswith(b"\n", cut) else events[cut:]
    return _JOURNAL_LINE.sub(b"", events)
