"""Records what a command prints as a picture that plays: each line appears when it was printed.

    make demo 2>&1 | .venv/bin/python examples/record.py docs/demo.svg

Time runs SPEED times as fast as it was. What cannot play the animation shows the last moment.
"""

import sys
import time
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPEED = 8
COLUMNS, LINE, LETTER, EDGE = 112, 18, 7.8, 16
"""Letters in a line; pixels of a line's height, of a letter's width, of the margin."""

STYLE = """
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; fill: #d5d9e0;
       white-space: pre; animation: appear 1ms both }
.title { fill: #7fb4ff } .answer { fill: #a6e3a1 }
@keyframes appear { from { opacity: 0 } to { opacity: 1 } }
"""


@dataclass(frozen=True)
class Line:
    """What was printed, and the second at which it was."""

    text: str
    at: float

    @property
    def kind(self) -> str:
        if self.text.startswith("["):
            return "title"
        return "answer" if self.text.startswith("  > ") else ""


def svg(lines: list[Line]) -> str:
    """A picture of `lines`, below each other."""
    width, height = round(2 * EDGE + COLUMNS * LETTER), 2 * EDGE + LINE * len(lines)
    rows = [
        f'<text x="{EDGE}" y="{EDGE + LINE * row + 13}" class="{line.kind}" '
        f'style="animation-delay: {line.at / SPEED:.2f}s">{escape(_cut(line.text))}</text>'
        for row, line in enumerate(lines)
        if line.text
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
            f"<style>{STYLE}</style>",
            f'<rect width="{width}" height="{height}" rx="8" fill="#16181d"/>',
            *rows,
            "</svg>\n",
        ]
    )


def _cut(text: str) -> str:
    return text if len(text) <= COLUMNS else text[: COLUMNS - 1] + "…"


def main() -> None:
    target, began, lines = Path(sys.argv[1]), time.monotonic(), []
    for text in sys.stdin:
        print(text, end="", flush=True)
        shown = text.rstrip().replace(str(ROOT), "~/pdserving")
        lines.append(Line(shown, time.monotonic() - began))
    target.write_text(svg(lines))


if __name__ == "__main__":
    main()
