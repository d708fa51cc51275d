"""A server under measurement: an engine or a router, as a process of its own."""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import httpx


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


class Server:
    """An engine or a router; its words go to a file."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *words: str,
        tree: Path | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        """`tree`: a checkout that its code comes from, in place of the one that is installed;
        `more`: variables of its environment."""
        port = free_port()
        self.name, self.url, self.log = name, f"http://127.0.0.1:{port}", folder / f"{name}.log"
        own = {"OMP_NUM_THREADS": "1"}
        if tree is not None:
            own["PYTHONPATH"] = os.pathsep.join(str(tree / part) for part in ("engine", "kernels"))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*words, "--port", str(port)],
                stdout=log,
                stderr=log,
                env={**os.environ, **own, **(more or {})},
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def answers(self, path: str) -> bool:
        if self.ended:
            raise SystemExit(f"{self.name} ended:\n{self.log.read_text()[-2000:]}")
        try:
            # Plain HTTP: to load certificates takes longer than the answer.
            return httpx.get(self.url + path, timeout=5, verify=False).status_code == 200
        except httpx.TransportError:
            return False

    def end(self) -> None:
        """An engine ends its own processes on SIGTERM; what is left then is killed."""
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(15)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
