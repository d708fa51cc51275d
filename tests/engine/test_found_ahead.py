"""A worker on a GPU finds all that a process without one has compiled: seen from outside."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from witness import COMPILED, FOUND, LISTENS, Start, Witness

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "examples" / "models" / "tiny"
KERNELS = 11
"""Of the tiny model; with Triton's launcher there are 12 artefacts."""


def worker(root: Path, name: str) -> tuple[list[int], list[Start], list[Start]]:
    """What it says of itself, and what its witness saw: before it was ready, and after that."""
    folder = root / name
    folder.mkdir()
    tree: dict[str, Any] = {
        "model": {"path": str(MODEL), "dtype": "bfloat16"},
        "cache": {"path": str(root / "volume"), "private": str(folder), "target": "sm_90"},
        "compile": True,
    }
    witness = Witness(folder)
    environment = witness.environment | {"PYTHONPATH": f"{HERE}:{HERE.parent / 'witness'}"}
    environment.pop("TRITON_INTERPRET", None)
    words = [sys.executable, str(HERE / "gpu_lookup.py"), json.dumps(tree)]
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seen = witness.starts()
    ready = next(at for at, start in enumerate(seen) if start.how == LISTENS)
    return json.loads(done.stdout), seen[:ready], seen[ready + 1 :]


def runs(seen: list[Start], program: str) -> int:
    return sum(start.how == "asked" and Path(start.path).name == program for start in seen)


@pytest.mark.soak  # 40 s of a core: kernels of attention
def test_a_worker_finds_all_that_was_compiled_without_a_gpu(tmp_path: Path) -> None:
    """The first one finds an empty volume. Both are asked for one kernel more than was planned: the
    witness sees that."""
    said, before, after = worker(tmp_path, "first")
    assert said == [KERNELS + 1, 0, KERNELS + 1, 1]
    assert runs(before, "ptxas") >= KERNELS and runs(before, "gcc")
    said, before, again = worker(tmp_path, "second")
    assert said == [0, KERNELS + 1, KERNELS + 1, 1]
    assert runs(before, "ptxas") < KERNELS  # for its version
    for seen in (after, again):
        assert [start.how for start in seen[:KERNELS]] == [FOUND] * KERNELS
        assert runs(seen, "ptxas") == 1
        assert [start.path for start in seen if start.how == COMPILED] == ["norm_rows"]
