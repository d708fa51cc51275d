"""Flame graphs of running processes: py-spy's samples, drawn as one SVG.

A frame is as wide as the time in which it ran. Frames of one function count as one, wherever it
stands in its file; waiting is left out.
"""

import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from zlib import crc32

from common import say

RATE = 250
"""Samples a second."""
WAITS = ("select (", "wait (", "Poller.poll (", "Runner.run (", "Socket.poll (")
"""A thread whose innermost frame is one of these waits. uvloop's loop has no frame of its own: it
shows as asyncio's Runner.run, and so do its system calls."""
WIDTH, ROW, LEAST = 1200.0, 15, 1.5
"""Pixels of a graph, of a row, and of the narrowest frame that is drawn."""
_LINE = re.compile(r":\d+\)$")


@dataclass(slots=True)
class Stacks:
    """A function, the samples in which it ran, and what it called."""

    samples: int = 0
    calls: "dict[str, Stacks]" = field(default_factory=dict)

    def add(self, frames: list[str], samples: int) -> None:
        self.samples += samples
        if frames:
            self.calls.setdefault(frames[0], Stacks()).add(frames[1:], samples)


@dataclass(frozen=True, slots=True)
class Panel:
    """One process of a graph."""

    title: str
    stacks: Stacks


@contextmanager
def watched(pids: Mapping[str, int]) -> Iterator[dict[str, Stacks]]:
    """What the processes did within: filled in at the end."""
    found: dict[str, Stacks] = {}
    spy = Path(sys.executable).with_name("py-spy")
    with tempfile.TemporaryDirectory() as folder:
        running = {
            name: subprocess.Popen(
                [str(spy), "record", "--pid", str(pid), "--rate", str(RATE), "--duration", "600",
                 "--format", "raw", "--output", f"{folder}/{name}"],
                stdout=subprocess.PIPE, text=True,
            )
            for name, pid in pids.items()
        }  # fmt: skip
        for name, each in running.items():
            said = each.stdout.readline() if each.stdout else ""
            if "Sampling" not in said:
                raise SystemExit(f"error: py-spy does not watch {name}: {said}")
        try:
            yield found
        finally:
            for each in running.values():
                each.send_signal(signal.SIGINT)
            for each in running.values():
                each.communicate()
        for name in pids:
            found[name] = collapsed(Path(folder, name).read_text())


def collapsed(text: str) -> Stacks:
    """py-spy's raw format: frames from the outermost on, by semicolons, and a number of samples."""
    root = Stacks()
    for line in text.splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = [_LINE.sub(")", frame) for frame in stack.split(";")]
        if not frames[-1].startswith(WAITS) and ".select (" not in frames[-1]:
            root.add(frames, int(samples))
    while len(root.calls) == 1:  # what all have in common says nothing
        (root,) = root.calls.values()
    return root


def drawn(title: str, panels: list[Panel]) -> str:
    """The panels one below the other, outermost frames on top."""
    parts: list[str] = []
    top = 24
    for panel in panels:
        parts.append(f'<text x="2" y="{top + 11}" class="t">{escape(panel.title)}</text>')
        top += ROW + 3
        scale = WIDTH / max(panel.stacks.samples, 1)
        _frames(panel.stacks, 0.0, top, scale, parts)
        top += _depth(panel.stacks, scale) * ROW + 10
    say(f"a graph of {len(parts)} frames")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {top}"'
        f' font-family="monospace" font-size="10"><style>.t{{font-weight:bold;font-size:12px}}'
        f'</style><rect width="100%" height="100%" fill="#fff"/>'
        f'<text x="2" y="14" font-size="12">{escape(title)}</text>{"".join(parts)}</svg>\n'
    )


def _depth(stacks: Stacks, scale: float) -> int:
    wide = (call for call in stacks.calls.values() if call.samples * scale >= LEAST)
    return max((1 + _depth(call, scale) for call in wide), default=0)


def _frames(stacks: Stacks, left: float, top: int, scale: float, parts: list[str]) -> None:
    for name, call in sorted(stacks.calls.items(), key=lambda each: -each[1].samples):
        width = call.samples * scale
        if width < LEAST:
            continue
        share, shade = 100 * width / WIDTH, crc32(name.partition(" (")[2].encode()) % 60
        label = escape(name.partition(" (")[0][: int(width / 6.1)]) if width > 25 else ""
        parts.append(
            f'<g><title>{escape(name)} {share:.1f}%</title><rect x="{left:.1f}" y="{top}"'
            f' width="{width - 0.3:.1f}" height="{ROW - 1}" fill="hsl({shade},80%,70%)"/>'
            + (f'<text x="{left + 2:.1f}" y="{top + 10}">{label}</text>' if label else "")
            + "</g>"
        )
        _frames(call, left, top + ROW, scale, parts)
        left += width
