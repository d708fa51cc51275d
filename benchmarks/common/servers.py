"""A server under measurement: an engine or a router, as a process of its own."""

import os
import socket
import subprocess
from pathlib import Path

import httpx


class Server:
    """An engine or a router; its words go to a file."""

    def __init__(self, folder: Path, name: str, *words: str, tree: Path | None = None) -> None:
        """`tree`: a checkout that its code comes from, in place of the one that is installed."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.name, self.url, self.log = name, f"http://127.0.0.1:{port}", folder / f"{name}.log"
        own = {"OMP_NUM_THREADS": "1"}
        if tree is not None:
            own["PYTHONPATH"] = os.pathsep.join(str(tree / part) for part in ("engine", "kernels"))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*words, "--port", str(port)],
                stdout=log,
                stderr=log,
                env={**os.environ, **own},
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def answers(self, path: str) -> bool:
        if self.ended:
            raise SystemExit(f"{self.name} ended:\n{self.log.read_text()[-2000:]}")
        try:
            return httpx.get(self.url + path, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def end(self) -> None:
        """An engine ends its own processes on SIGTERM."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
