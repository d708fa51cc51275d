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
        if not self._held and data.endswith(_END):
            # The usual case first: this runs once per event of every stream.
            if data.startswith(JOURNAL) and data.count(b"\n") == 3:
                cut = data.find(b"\n") + 1
                if data.startswith(b"data:", cut):
                    return data[cut:]
            return strip(data)
        searched = max(0, len(self._held) - 1)
        self._held += data
        cut = self._held.rfind(_END, searched) + 2
        if cut < 2:
            return b""
        whole = bytes(self._held[:cut])
        del self._held[:cut]
        return strip(whole)

    def rest(self) -> bytes:
        """What is left at the end of the stream."""
        data = bytes(self._held)
        self._held.clear()
        return strip(data)


def strip(events: bytes) -> bytes:
    """`events` without journal comments. JSON holds no raw line break: none can hide one."""
    return _JOURNAL_LINE.sub(b"", events) if JOURNAL in events else events
