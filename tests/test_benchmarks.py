"""Each benchmark runs as a plain file, says what it waits for, and ends by itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def started(*words: str, **more: str) -> subprocess.Popen[str]:
    """As from a shell: nothing is on Python's path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def common(code: str) -> subprocess.Popen[str]:
    """A process that runs `code` where a benchmark would."""
    return started("-c", f"import sys; sys.path.insert(0, {str(FOLDER)!r})\n{code}")


@pytest.fixture(scope="module")
def helped() -> dict[str, tuple[int, str, str]]:
    """Of each benchmark: the status of --help, and what it said. All at once: torch is slow."""
    processes = {name: started(f"benchmarks/{name}.py", "--help") for name in NAMES}
    printed = {name: process.communicate(timeout=120) for name, process in processes.items()}
    return {name: (processes[name].returncode, *printed[name]) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_starts_as_a_plain_file(helped, name: str) -> None:
    status, printed, failed = helped[name]
    assert (status, failed) == (0, "")
    assert "--quick" in printed


def test_the_chunks_of_a_prompt_pass_real_stages() -> None:
    """--help alone does not notice when the engine's processes begin otherwise."""
    sizes = ("--stages", "2", "--chunks", "2", "--chunk-size", "16", "--hidden", "32")
    process = started("benchmarks/pp_chunks.py", *sizes, "--step-ms", "1", "--repeat", "1")
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    figures = json.loads(printed)
    assert (figures["stages"], figures["chunks"]) == (2, 2)
    assert figures["value"] > 0


@pytest.mark.parametrize("name", ["rollout", "scale"])
def test_without_a_cluster_it_ends_and_says_how_to_get_one(name: str, tmp_path: Path) -> None:
    ours = {"PDS_CLUSTER_DIR": str(tmp_path), "PDS_CLUSTER_NAME": "nowhere"}
    process = started(f"benchmarks/{name}.py", "--quick", **ours)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert said.startswith("looking for the cluster\nerror: no local cluster: ")
    assert "make cluster-up" in said


def deployment(replicas: int) -> dict[str, Any]:
    metadata = {"name": "pdserving", "namespace": "pds-system"}
    return {"metadata": metadata, "spec": {"replicas": replicas}}


@pytest.mark.parametrize(("replicas", "status"), [(1, 1), (0, 0)])
def test_beside_another_operator_it_ends_and_says_how_to_stop_that(replicas, status) -> None:
    """Both would look after the objects of the run; it said nothing, and waited."""
    found = json.dumps({"items": [deployment(replicas)]})
    process = common(
        "from types import SimpleNamespace\n"
        "from common.clusters import alone\n"
        f"there = SimpleNamespace(program='kubectl', kubeconfig='k')\n"
        f"there.kubectl = lambda *_: {found!r}\n"
        "alone(there)"
    )
    _, said = process.communicate(timeout=30)
    assert process.returncode == status
    assert ("an operator runs here, deployment pdserving of namespace pds-system" in said) == status
    assert ("kubectl --kubeconfig=k -n pds-system scale deployment pdserv" in said) == status


@pytest.mark.parametrize("inner", [0.2, 60.0])
def test_what_is_not_done_in_time_ends_with_what_it_was(inner: float) -> None:
    process = common(
        "import threading\n"
        "from common import doing\n"
        f"with doing('the whole', 0.4), doing('a part', {inner}):\n"
        "    threading.Event().wait()"
    )
    _, said = process.communicate(timeout=30)
    late = (
        "error: a part: not done in 0.2 s" if inner < 1 else "error: the whole: not done in 0.4 s"
    )
    assert process.returncode == 1
    assert said.splitlines() == [
        "the whole (at most 0.4 s)",
        f"a part (at most {inner:g} s)",
        late,
    ]


def test_what_is_done_in_time_leaves_the_rest_to_what_is_around_it() -> None:
    process = common(
        "import threading\n"
        "from common import doing\n"
        "with doing('the whole', 0.3):\n"
        "    with doing('a part', 0.1):\n"
        "        pass\n"
        "    threading.Event().wait()"
    )
    _, said = process.communicate(timeout=30)
    assert said.endswith("error: the whole: not done in 0.3 s\n")


@pytest.mark.slow
def test_our_engine_alone_has_its_figures(tmp_path: Path) -> None:
    """Tiny models, in process, without what the user's cache holds."""
    words = ("--quick", "--no-http", "--engines", "ours")
    process = started("benchmarks/cpu_engine.py", *words, XDG_CACHE_HOME=str(tmp_path))
    printed, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    figures = json.loads(printed)
    names = {"prefill_1", "prefill_8", "decode_1", "decode_8", "decode_32"}
    for model in ("tiny", "tiny-mixture"):
        assert figures["models"][model]["medians"]["ours"].keys() == names
    assert figures["value"] > 0 and 0 < figures["bandwidth_share"] < 10
    assert (figures["ratio"], figures["missing"]) == (None, {})
