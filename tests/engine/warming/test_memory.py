"""What a container may use, as its kernel says it; and for how many compilers that is enough."""

from pathlib import Path

import pytest
from pds_engine.warming import memory

GIB = 1 << 30
MEMINFO = "MemTotal: 24000000 kB\nMemFree: 100 kB\nMemAvailable: 8388608 kB\n"
FREE = (8 * GIB, "MemAvailable of this machine")
LIMIT = "resources.limits.memory"
V1_NONE = str((1 << 63) - 4096)
CASES = {
    "v2, its own namespace": ("0::/\n", {"memory.max": str(2 * GIB)}, (2 * GIB, LIMIT)),
    "v2, no limit": ("0::/\n", {"memory.max": "max"}, FREE),
    "v2, of the pod around it": (
        "0::/pod/container\n",
        {"memory.max": "max", "pod/memory.max": str(GIB), "pod/container/memory.max": "max"},
        (GIB, LIMIT),
    ),
    "v2, at the root of a machine": ("0::/user.slice\n", {}, FREE),
    "v1, its own folder is mounted as the root": (
        "9:cpu,cpuacct:/kubepods/a\n4:memory:/kubepods/a\n",
        {"memory/memory.limit_in_bytes": str(3 * GIB)},
        (3 * GIB, LIMIT),
    ),
    "v1, no limit": ("4:memory:/\n", {"memory/memory.limit_in_bytes": V1_NONE}, FREE),
    "both, with memory in v1": (
        "4:memory:/a\n0::/\n",
        {
            "memory/memory.limit_in_bytes": V1_NONE,
            "memory/a/memory.limit_in_bytes": str(5 * GIB),
        },
        (5 * GIB, LIMIT),
    ),
}


@pytest.mark.parametrize(("mine", "files", "expected"), CASES.values(), ids=CASES)
def test_ceiling(tmp_path: Path, mine: str, files: dict[str, str], expected: object) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(mine)
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    found = memory.ceiling(tmp_path)
    assert (found.bytes, found.source) == expected


def test_this_machine_says_something() -> None:
    assert memory.ceiling().bytes > 64 << 20


@pytest.mark.parametrize(
    ("asked", "builds", "available", "each", "expected"),
    [
        (2, 31, 16 * GIB, GIB, 2),
        (8, 3, 16 * GIB, GIB, 3),
        (8, 31, 4 * GIB, int(1.5 * GIB), 2),
        (8, 31, GIB, 2 * GIB, 1),
    ],
)
def test_workers(asked: int, builds: int, available: int, each: int, expected: int) -> None:
    assert memory.workers(asked, builds, available, each) == expected


def test_the_words_name_the_key_the_limit_and_the_cure() -> None:
    said = memory.killed("after", "ab" * 32, memory.Ceiling(2 * GIB, LIMIT), GIB)
    assert said.startswith("after (key abababababababab): its compiler was killed twice")
    assert "It was reckoned to take 1 GiB; there are 2 GiB (resources.limits.memory): raise" in said
    assert "cache.workers: 1" in said
