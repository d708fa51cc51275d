"""Engines and routers of the tiny model as processes that serve HTTP."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
from free import free_port

MODEL = Path(__file__).parents[2] / "examples" / "models" / "tiny"
ENGINE = (sys.executable, "-c", "from pds_engine.cli import main; main()")
ROUTER = (sys.executable, "-m", "pds_engine.router", "serve")


class ServingProcess:
    """One that serves HTTP on `port`, any free one by default; its output goes to a file."""

    def __init__(self, folder: Path, name: str, *words: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*words, "--port", str(self.port)],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=5)

    def answers(self, path: str = "/readyz") -> bool:
        """Whether it answers 200 there; AssertionError when it has ended."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.get(path).status_code == 200
        except httpx.TransportError:
            return False

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def children(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> dict[str, int]:
    """Process ids of a `pds-engine serve`'s children, by kind."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = {}
    for pid in path.read_text().split():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        found[words[words.index("pds_engine.child") + 1]] = int(pid)
    return found
