"""How much memory this container may use, and how many compilers that is enough for."""

from dataclasses import dataclass
from pathlib import Path

from pds_kernels.cache.trouble import size

_CGROUPS = "sys/fs/cgroup"
_UNLIMITED = 1 << 60
"""cgroup v1 says a number near 2⁶³ where there is no limit."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """Bytes, and what sets them, in words."""

    bytes: int
    source: str

    def __str__(self) -> str:
        return f"{size(self.bytes)} ({self.source})"


def ceiling(root: Path = Path("/")) -> Ceiling:
    """The memory limit of this process's cgroup, v2 or v1; without one, what the machine has left.

    `root` has `proc` and `sys`.
    """
    found = limit(root)
    if found is not None:
        return Ceiling(found, "resources.limits.memory")
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return Ceiling(int(value.split()[0]) << 10, "MemAvailable of this machine")
    return Ceiling(_UNLIMITED, "unknown")


def limit(root: Path = Path("/")) -> int | None:
    """Bytes: the least limit of this process's cgroup, v2 or v1, and of those around it; None where
    there is none. `root` as in `ceiling`."""
    return min(_limits(root), default=None)


def workers(asked: int, builds: int, available: int, each: int) -> int:
    """Compile processes: no more than asked for, than there are builds, or than memory is there
    for, where each takes `each` bytes of the `available`. At least one."""
    return max(1, min(asked, builds, available // each))


def killed(name: str, key: str, limit: Ceiling, each: int) -> str:
    """The words for a build whose compiler was killed a second time, when it ran alone."""
    return (
        f"{name} (key {key[:16]}): its compiler was killed twice, the second time with no other "
        f"beside it, most likely for memory. It was reckoned to take {size(each)}; there are "
        f"{limit}: raise resources.limits.memory. cache.workers: 1 keeps compilers apart from the "
        "start"
    )


def _limits(root: Path) -> list[int]:
    """Of the cgroup that this process is in and of those around it, as far as they are mounted."""
    found = []
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mount, name = root / _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = mount / path.lstrip("/")
        for each in (folder, *folder.parents):
            file = each / name
            if file.is_file() and (text := file.read_text().strip()) != "max":
                found.append(int(text))
            if each == mount:
                break
    return [each for each in found if each < _UNLIMITED]
