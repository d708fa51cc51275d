"""Run on a bad file system by test_bad_files.py: others make what this process looks for, and
replace what it reads.

    replaced.py ROOT

Prints as JSON what it got.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cache_pods import INPUTS, never
from pds_kernels.cache import Cache, prune
from pds_kernels.cache.files import CHUNK, Files

ROOT = Path(sys.argv[1])
SIZE = 3 * CHUNK


def elsewhere(work: Callable[[], object]) -> None:
    """Another process does `work`."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)


def pod(name: str, files: Callable[[], Files] = Files) -> Cache:
    return Cache(ROOT / "volume", ROOT / name, b"key", files=files)


def build(folder: Path) -> None:
    (folder / "kernel.so").write_bytes(os.urandom(SIZE))


def pruned_and_built_again() -> None:
    other = pod("other")
    prune(other, unused_for=0, now=1e12)
    pod("third").get("k", INPUTS, build)


class Disturbed(Files):
    """After the first piece of the kernel, others take it away and build another one."""

    reads = 0

    def begin(self, operation: str, path: Path) -> None:
        if operation == "read" and path.name == "kernel.so":
            Disturbed.reads += 1
            if Disturbed.reads == 3:
                elsewhere(pruned_and_built_again)


def replace(path: Path, content: bytes) -> None:
    scratch = path.with_name("scratch")
    scratch.write_bytes(content)
    scratch.rename(path)


def came(path: Path) -> bool:
    """What was looked for in vain is found once another process has made it."""
    before = path.exists()
    elsewhere(path.touch)
    path.exists()  # in vain again, where the first look is remembered
    end = time.monotonic() + 10
    while not Files().exists(path) and time.monotonic() < end:
        time.sleep(0.002)
    return not before and Files().exists(path)


def main() -> None:
    names = [ROOT / "volume" / str(number) for number in range(20)]
    found = [came(path) for path in names]
    lock = ROOT / "volume" / "lock"
    lock.write_bytes(b"first")
    first = Files().read(lock)
    elsewhere(lambda: replace(lock, b"second"))
    second = Files().read(lock)
    elsewhere(lambda: pod("maker").get("k", INPUTS, build))
    reader = pod("reader", Disturbed)
    made = reader.get("k", INPUTS, never)
    said = {
        "came": found,
        "read": [first.decode(), second.decode()],
        "size": (made.folder / "kernel.so").stat().st_size,
        "shared": made.shared,
        "trouble": reader.volume.trouble,
        "damage": reader.damage,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
