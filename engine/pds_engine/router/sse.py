"""Server-sent events as bytes, and the journal that engines keep beside them (router.md).

: pds <count> <ids>            before each event: output tokens so far, and its own, by commas
: pds <count> <ids> end        before each event that comes of the last token
: pds failed <status> <error>  in an event's place: the engine gives the stream up
"""

from array import array

JOURNAL = b": pds "
"""What a line of the journal begins with."""
_END = b"\n\n"
_DATA = b"data:"


class Journal:
    """The output tokens that the client has, one after the other, without a gap."""

    __slots__ = ("complete", "ids")

    def __init__(self) -> None:
        self.ids = array("I")
        self.complete = True
        """Every event had its line: the stream can be resumed."""

    def note(self, count: bytes, ids: bytes) -> None:
        """Take one line in: `ids` are the newest of `count` tokens."""
        try:
            if b"," in ids:
                self.ids.extend(map(int, ids.split(b",")))
            else:
                self.ids.append(int(ids))
            if int(count) != len(self.ids):
                self.complete = False
        except (ValueError, OverflowError):
            self.complete = False


class EventReader:
    """Turns what arrives into whole events: an error, or another engine's event, can follow each.

    It holds the events of the last token until `rest`: a stream that is resumed has not ended.
    """

    __slots__ = ("_held", "_last", "failed", "journal")

    def __init__(self) -> None:
        self._held = bytearray()
        self._last: bytearray | None = None
        self.journal = Journal()
        self.failed: tuple[int, bytes] | None = None
        """The engine has given the stream up: HTTP's status, and an error object."""

    def feed(self, data: bytes) -> bytes:
        """The events that are complete with `data`, without their journal; often just `data`."""
        if not self._held and data.endswith(_END):
            # The usual case first: this runs once per event of every stream.
            if self._last is None and data.startswith(JOURNAL) and data.count(b"\n") == 3:
                cut = data.find(b"\n")
                words = data[len(JOURNAL) : cut].split(b" ")
                if len(words) == 2 and data.startswith(_DATA, cut + 1):
                    self.journal.note(*words)
                    return data[cut + 1 :]
            return self._read(data)
        searched = max(0, len(self._held) - 1)
        self._held += data
        cut = self._held.rfind(_END, searched) + 2
        if cut < 2:
            return b""
        whole = bytes(self._held[:cut])
        del self._held[:cut]
        return self._read(whole)

    def rest(self) -> bytes:
        """The rest when the stream ends: its last events, and bytes that make no whole event."""
        data = bytes(self._last or b"") + self._event(bytes(self._held))
        self.cut()
        return data

    def cut(self) -> None:
        """The stream broke: another engine will send again what was not given out."""
        self._held.clear()
        self._last = None
        self.failed = None

    def _read(self, events: bytes) -> bytes:
        """The events, without their journal, that can be given out now."""
        given = bytearray()
        for event in events.split(_END)[:-1]:
            if kept := self._event(event):
                part = given if self._last is None else self._last
                part += kept + _END
        return bytes(given)

    def _event(self, event: bytes) -> bytes:
        """`event` without its journal. JSON holds no raw line break: none can hide a line."""
        lines = event.split(b"\n")
        kept = [line for line in lines if not line.startswith(JOURNAL)]
        if len(kept) < len(lines):
            for line in lines:
                if line.startswith(JOURNAL):
                    self._note(line[len(JOURNAL) :])
        elif self._last is None and event.startswith(_DATA):
            self.journal.complete = False
        return b"\n".join(kept)

    def _note(self, line: bytes) -> None:
        match line.split(b" ", 2):
            case [b"failed", status, error] if status.isdigit():
                self.failed = (int(status), error)
            case [_, _, b"end"]:
                self._last = bytearray() if self._last is None else self._last
            case [count, ids] if self._last is None:
                self.journal.note(count, ids)
            case _:
                self.journal.complete = self._last is not None and self.journal.complete
