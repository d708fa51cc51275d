"""What a warm-up says: lines, a bar on a real terminal, and a record that is written seldom."""

import contextlib
import io
import json
import os
import threading

from pds_engine.warming.progress import Bar, Lines, Progress, Recorder, Step, display


def test_a_line_for_each_artefact_with_the_time_left() -> None:
    stream = io.StringIO()
    with Progress(4, display(stream), "chat-p-0-0-0", range(1, 3)) as progress:
        progress.came("a", 10.0, "found")
        progress.begin(2, Recorder(lambda content: True))
        progress.came("b", 20.0, "built")
        progress.came("c", 6.0, "other")
        progress.came("d", 4.0, "built")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.pop("stages") for line in lines] == [[1, 2]] * 4
    assert lines == [
        {"artefact": "a", "n": 1, "of": 4, "seconds": 10.0, "left": None, "source": "found"},
        {"artefact": "b", "n": 2, "of": 4, "seconds": 20.0, "left": 15.0, "source": "built"},
        {"artefact": "c", "n": 3, "of": 4, "seconds": 6.0, "left": 6.0, "source": "other"},
        {"artefact": "d", "n": 4, "of": 4, "seconds": 4.0, "left": 0.0, "source": "built"},
    ]


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        shown = display(terminal)
        assert isinstance(shown, Bar) and isinstance(display(io.StringIO()), Lines)
        shown.show(Step("before", 12, 31, 4.0, 40.0, "built", (1,)))
        shown.close()
    said = b""
    with contextlib.suppress(OSError):  # EIO is how a terminal ends
        while chunk := os.read(ours, 4096):
            said += chunk
    os.close(ours)
    text = said.decode()
    assert "12/31" in text and "40 s left" in text and "before (built)" in text
    assert "\x1b[" in text


def test_records_are_written_at_once_then_seldom_and_the_last_one_always() -> None:
    written: list[int] = []
    first = threading.Event()

    def write(content: bytes) -> bool:
        written.append(json.loads(content)["n"])
        first.set()
        return True

    recorder = Recorder(write, every=60)
    recorder.put({"n": 0})
    assert first.wait(10)
    for n in range(1, 100):
        recorder.put({"n": n})
    recorder.close(timeout=10)
    assert written == [0, 99]


def test_a_volume_that_refuses_is_not_asked_again() -> None:
    asked: list[bytes] = []
    recorder = Recorder(lambda content: bool(asked.append(content)), every=0.001)
    for n in range(3):
        recorder.put({"n": n})
    recorder.close(timeout=10)
    recorder.put({"n": 9})
    recorder.close(timeout=10)
    assert len(asked) == 1


def test_the_record_says_how_it_ended() -> None:
    kept: dict[str, object] = {}

    def write(content: bytes) -> bool:
        kept.update(json.loads(content))
        return True

    try:
        with Progress(2, Lines(io.StringIO()), "chat-p-0-0-0", range(1, 3)) as progress:
            progress.begin(1, Recorder(write))
            progress.came("a", 3.0, "built")
            raise RuntimeError("the compiler died")
    except RuntimeError:
        pass
    del kept["seconds"]
    assert kept == {
        "state": "failed",
        "n": 1,
        "of": 2,
        "left": 3.0,
        "workers": 1,
        "producer": "chat-p-0-0-0",
    }
