"""An engine in a process of its own, which measures itself when it is told to."""

import json
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
END_SECONDS = 20.0
Prompts = list[list[int]]


class Failed(Exception):
    """The process ended, or did not answer in time; the text has its last words."""


class Session:
    """A process of `drive_*.py`. It is stopped while it is not asked, with all that it started, so
    that its idle threads take nothing from the engine that is measured."""

    def __init__(
        self,
        name: str,
        words: list[str],
        settings: Mapping[str, Any],
        more: Mapping[str, str],
        log: Path,
    ) -> None:
        self.name, self.log = name, log
        with log.open("wb") as written:
            self._process = subprocess.Popen(
                [*words, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=written,
                env={**os.environ, **more},
                start_new_session=True,
            )
        self._waiting = selectors.DefaultSelector()
        if self._process.stdout is not None:
            self._waiting.register(self._process.stdout, selectors.EVENT_READ)

    def loaded(self, limit: float) -> float:
        """Seconds until the engine had its model, in its own process."""
        seconds: float = self._answer(limit)
        self._signal(signal.SIGSTOP)
        return seconds

    def first(self, prompts: Prompts, limit: float) -> list[int]:
        tokens: list[int] = self._ask({"do": "first", "prompts": prompts}, limit)
        return tokens

    def prefill(self, prompts: Prompts, limit: float) -> float:
        seconds: float = self._ask({"do": "prefill", "prompts": prompts}, limit)
        return seconds

    def decode(self, prompts: Prompts, steps: int, limit: float) -> list[float]:
        order = {"do": "decode", "prompts": prompts, "steps": steps}
        seconds: list[float] = self._ask(order, limit)
        return seconds

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> None:
        """It ends by itself when no orders are left; what does not is killed."""
        self._signal(signal.SIGCONT)
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._waiting.close()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, order: dict[str, Any], limit: float) -> Any:
        self._signal(signal.SIGCONT)
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()
            return self._answer(limit)
        except BrokenPipeError as error:
            raise self._failed("ended") from error
        finally:
            self._signal(signal.SIGSTOP)

    def _answer(self, limit: float) -> Any:
        if not self._waiting.select(limit):
            raise self._failed(f"no answer in {limit:g} s")
        line = self._process.stdout.readline() if self._process.stdout is not None else b""
        if not line:
            raise self._failed("ended")
        return json.loads(line)["answer"]

    def _failed(self, what: str) -> Failed:
        return Failed(f"{self.name}: {what}: {self.log.read_text(errors='replace')[-800:]}")

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
