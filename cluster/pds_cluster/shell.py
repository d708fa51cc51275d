"""Running other programs, and waiting for what can be observed."""

import fcntl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pds_cluster.errors import ClusterError

Arg = str | Path


def run(
    *argv: Arg, stdin: str | None = None, check: bool = True, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Runs `argv`, its output captured as text. Raises ClusterError with stderr when it fails."""
    try:
        done = subprocess.run(
            [str(arg) for arg in argv],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"{_words(argv)} did not end within {timeout:.0f} s") from error
    if check and done.returncode != 0:
        raise ClusterError(
            f"{_words(argv)} failed ({done.returncode})", done.stderr.strip()[-2000:]
        )
    return done


def _words(argv: Sequence[Arg]) -> str:
    return " ".join(str(arg) for arg in argv)[:200]


def wait_for(
    what: str, probe: Callable[[], bool], timeout: float, interval: float = 0.1, hint: str = ""
) -> None:
    """Returns as soon as `probe()` is true. Raises ClusterError naming `what` after `timeout` s."""
    deadline = time.monotonic() + timeout
    while not probe():
        if time.monotonic() > deadline:
            raise ClusterError(f"{what}: not within {timeout:.0f} s", hint)
        time.sleep(interval)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes `text` unless it is there already, so that unchanged files keep their times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    path.chmod(mode)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file `path`; waits for whoever holds it. The holder may delete it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path.exists() and path.samefile(f"/proc/self/fd/{lock.fileno()}")):
                continue  # deleted while we waited: what we hold is nobody's lock any more
            yield
            return
