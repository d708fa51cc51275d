"""On a file system that behaves as network file systems do at their worst (bad_fs.c).

The scenario is that of triton #11512: 8 new processes, 8 variants, a barrier before each. Triton's
own cache runs beside ours, and its failures are counted: `pytest -rP` shows them.
"""

import collections
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bad_files import BadFiles, preloadable
from pds_kernels.cache import Cache, entries

HERE = Path(__file__).parent
VARIANTS = 8


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return preloadable(tmp_path_factory.mktemp("library"))


def storm(bad: BadFiles, root: Path, words: str) -> dict[str, Any]:
    """What storm.py says, after printing it with the faults that there were."""
    program = [sys.executable, HERE / "storm.py", *words.split(), root]
    ran = subprocess.run(program, env=bad.env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout)
    print(f"{words}: {len(said['failures'])} failures, faults: {bad.faults()}")
    print(f"variants by how often they were built: {said['builds']}")
    kinds = collections.Counter(re.sub(r": .*", "", one) for one in said["failures"])
    for kind, count in kinds.most_common():
        print(f"{count:5} {kind}")
    return said


SHORT = "cheap fork 2"
WHOLE = pytest.param("real spawn 20", marks=pytest.mark.soak)


@pytest.mark.parametrize("how", [SHORT, WHOLE])
def test_nothing_of_ours_fails_and_each_variant_is_built_once(
    tmp_path: Path, library: Path, how: str
) -> None:
    bad = BadFiles(tmp_path / "volume", library, seed=11512)
    rounds = int(how.split()[-1])
    said = storm(bad, tmp_path, f"ours {how}")
    assert said["failures"] == []
    assert said["builds"] == {"1": VARIANTS * rounds}
    assert said["apart"] > 1800
    faults = bad.faults()
    assert all(faults[kind] for kind in ("late", "exists", "busy")), faults
    for number in range(rounds):
        volume = tmp_path / "volume" / f"round-{number}"
        found = list(entries(Cache(volume, tmp_path / "judge", b"key")))
        assert [entry.intact for entry in found] == [True] * VARIANTS


@pytest.mark.parametrize("how", [SHORT, WHOLE])
def test_the_same_faults_are_failures_of_tritons_own_cache(
    tmp_path: Path, library: Path, how: str
) -> None:
    """Else they would show nothing."""
    bad = BadFiles(tmp_path / "volume", library, seed=11512)
    failures = storm(bad, tmp_path, f"triton {how}")["failures"]
    assert failures
    errors = ("OSError ", "FileExistsError ", "FileNotFoundError ")
    assert [each for each in failures if not each.startswith(errors)] == []


def test_what_others_make_comes_and_what_they_replace_is_read_anew(
    tmp_path: Path, library: Path
) -> None:
    bad = BadFiles(tmp_path / "volume", library, seed=1)
    ran = subprocess.run(
        [sys.executable, HERE / "replaced.py", tmp_path],
        env=bad.env,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == {
        "came": [True] * 20,
        "read": ["first", "second"],
        "size": 3 << 20,
        "shared": True,
        "trouble": "",
        "damage": {},
    }
    faults = bad.faults()
    assert all(faults[kind] for kind in ("negative", "stale open", "stale read")), faults
