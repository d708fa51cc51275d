"""After Ready nothing is compiled: seen from outside, in groups of every role."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpu_libraries
import httpx
import pytest
from pds_engine.artefacts.libraries import DENSE
from random_models import saved
from real_processes import ENGINE, MODEL, ServingProcess
from waiting import wait_until
from witness import Start, Witness

HERE = Path(__file__).parent
LAYOUTS = {"unified": {"tp": 2}, "prefill": {"tp": 2}, "decode": {"pp": 2, "tp": 2}}
RANKS = {role: split.get("pp", 1) * split["tp"] for role, split in LAYOUTS.items()}
PROOFS = {role: [0, ranks * len(DENSE), 0] for role, ranks in RANKS.items()}
"""Compiled before Ready, reused, compiled after it: each rank has the same libraries."""
LENGTHS = [1, 2, 15, 16, 17, 31, 32, 33, 97]
"""Around pages of 16 tokens and chunks of 32, at once: steps of many shapes."""


class WarmGroups:
    """`warm_groups.py` as a process, and the witness of it and all that it starts."""

    def __init__(self, folder: Path, model: Path, volume: Path) -> None:
        (folder / "key").mkdir()
        (folder / "key" / "cache.key").write_text(cpu_libraries.SEAL.hex())
        self.witness = Witness(folder)
        environment = self.witness.environment | {
            "PYTHONPATH": f"{HERE}:{HERE.parent / 'witness'}",
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("TRITON_INTERPRET", None)
        trees = {role: self._tree(role, model, volume, folder) for role in LAYOUTS}
        words = [sys.executable, str(HERE / "warm_groups.py"), json.dumps(trees), str(folder)]
        self._process = subprocess.Popen(
            words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.workers: list[int] = self._heard()

    def ask(self, *lengths: int) -> dict[str, Any]:
        assert self._process.stdin
        print(json.dumps(lengths), file=self._process.stdin, flush=True)
        found: dict[str, Any] = self._heard()
        return found

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.stdout.close()

    def _heard(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the groups have ended"
        return json.loads(line)

    def _tree(self, role: str, model: Path, volume: Path, folder: Path) -> dict[str, Any]:
        split = {"pp": 1, **LAYOUTS[role]}
        return {
            "model": {"path": str(model), "dtype": "float32"},
            "role": role,
            "max_model_len": 128,
            "parallelism": {**split, "ranks_per_pod": split["pp"] * split["tp"]},
            "scheduler": {"max_running": 8, "chunk_size": 32},
            "kv": {"pages": 128, "backends": ["tcp"], "port_base": 0},
            "cache": {
                "path": str(volume),
                "private": str(folder / f"private-{role}"),
                "key_dir": str(folder / "key"),
                "warmup": True,
            },
            "compile": True,
        }


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmGroups]:
    model = saved("Qwen2ForCausalLM", tmp_path_factory.mktemp("model"))
    found = WarmGroups(tmp_path_factory.mktemp("groups"), model, cpu_libraries.VOLUME)
    yield found
    found.close()


def compilers(starts: list[Start]) -> list[Start]:
    return [start for start in starts if start.is_compiler]


@pytest.mark.slow
def test_no_role_compiles_after_ready(groups: WarmGroups) -> None:
    """The first requests, then those of many shapes, then the first ones an hour later."""
    before = groups.witness.starts()
    # Each worker asks the compiler for its version before it is ready: so the witness sees it.
    assert set(groups.workers) <= {start.parent for start in compilers(before)}
    answers = [groups.ask(5), groups.ask(*LENGTHS)]
    groups.witness.move_clocks(3600)
    answers += [groups.ask(5), groups.ask(*LENGTHS)]
    assert 3600 < answers[2]["clock"] - answers[1]["clock"] < 3700
    for answer in answers:
        assert answer["whole"] == answer["apart"]
        assert answer["proofs"] == PROOFS
    assert groups.witness.starts()[len(before) :] == []


def answered(pod: ServingProcess) -> list[str]:
    """Texts of prompts of many lengths, one after the other, and then at once."""
    lengths = (1, 30, 200, 700)
    asked: list[list[list[int]]] = [[[7] * length] for length in lengths]
    asked.append([[7] * length for length in lengths])
    texts = []
    for prompts in asked:
        body = {"model": "tiny", "prompt": prompts, "max_tokens": 8, "temperature": 0}
        answer = httpx.post(f"{pod.url}/v1/completions", json=body, timeout=60)
        texts += [choice["text"] for choice in answer.raise_for_status().json()["choices"]]
    return texts


@pytest.mark.soak  # all libraries are compiled, for half a minute of a core
def test_a_pod_runs_no_program_after_its_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of its containers, on an empty volume; all of its processes, and HTTP."""
    witness = Witness(tmp_path)
    for name in ("LD_PRELOAD", "PDS_WITNESS", "PDS_WITNESS_CLOCK"):
        monkeypatch.setenv(name, witness.environment[name])
    tree = {
        "model": {"path": str(MODEL), "name": "tiny", "dtype": "float32"},
        "cache": {
            "path": str(tmp_path / "volume"),
            "private": str(tmp_path / "own"),
            "warmup": True,
        },
        "http": {"metrics_port": 0, "control_port": 0, "rendezvous_port": 0},
        "compile": True,
    }
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tree))
    subprocess.run([*ENGINE, "warmup", "--config", str(config)], check=True)
    built = {Path(start.path).name for start in witness.starts() if start.how == "started"}
    assert "cc1plus" in built
    pod = ServingProcess(tmp_path, "pod", *ENGINE, "serve", "--config", str(config))
    try:
        wait_until(pod.answers, 300)
        before = len(witness.starts())
        first = answered(pod)
        witness.move_clocks(3600)
        assert answered(pod) == first
        assert witness.starts()[before:] == []
        shown = pod.get("/metrics").text.splitlines()
        assert "pds_compiles_after_ready 0.0" in shown
        count = f"{len(DENSE)}.0"
        assert f'pds_warmup_artefacts{{source="built",stages="0"}} {count}' in shown
    finally:
        pod.end()
