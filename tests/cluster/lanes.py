"""Runs the tests on the local Kubernetes in two lanes side by side, each on an instance of its own.

    .venv/bin/python tests/cluster/lanes.py            what CI runs, by `make e2e`
    .venv/bin/python tests/cluster/lanes.py --soak     the long ones too, by `make e2e-all`
    .venv/bin/python tests/cluster/lanes.py faults ha  parts whose names hold one of these words

Much of a cluster test is waiting: for drains, deadlines, leases. Two lanes fill two cores with it.
One lane takes the API server away, the other kills operators, which no test beside it would live
through, hence a second instance: it is made and deleted here. With PDS_CONTEXT the lanes run one
after the other, on that cluster.

A part is one pytest process: what one leaves behind in Python cannot fail the next, and its files
share a PDServing where they can.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOGS = ROOT / ".cache" / "e2e"

WITHOUT = ("-p", "no:schemathesis", "-p", "no:hypothesispytest")
"""Plugins that no cluster test needs: four seconds of a core at the start of each part."""
Part = tuple[str, ...]
"""Files of one process."""
ROLLOUTS: tuple[Part, ...] = (
    (
        "cluster/test_warmup.py",
        "cluster/test_rollout.py",
        "cluster/test_rotation.py",
        "cluster/test_pipeline.py",
        "cluster/test_data_parallel.py",
        "cluster/test_models.py",
        "cluster/test_volume.py",
    ),
    (
        "cluster/test_recreate.py",
        "cluster/test_rollback.py",
        "cluster/test_faults.py",
        "cluster/test_refusals.py",
    ),
)
"""On the instance that is up."""
OTHERS: tuple[Part, ...] = (
    (
        "operator/test_crd_cel.py",
        "operator/test_operator_process.py",
        "operator/test_owned_fields.py",
        "operator/test_ha.py",
        "operator/test_upgrade.py",
    ),
    ("cluster/test_skew.py",),
    ("cluster/test_cluster_lifecycle.py", "cluster/test_cluster_teardown.py"),
    (
        "cluster/test_serving.py",
        "cluster/test_answers.py",
        "cluster/test_sizes.py",
        "cluster/test_scaling.py",
        "cluster/test_migration.py",
        "cluster/test_beside.py",
        "cluster/test_operator_killed.py",
        "cluster/test_long.py",
    ),
)
"""On a second one. The first part needs a cluster without our chart, or takes its operator away,
the second installs another."""


@dataclass(frozen=True)
class FinishedPart:
    """A part that has run."""

    part: Part
    seconds: float
    status: int
    summary: str
    """pytest's last line."""


@dataclass
class ClusterLane:
    """Parts, one after the other, on one instance."""

    name: str
    parts: tuple[Part, ...]
    environment: Mapping[str, str]
    marks: str
    stop: threading.Event
    owned: bool = False
    """Its instance is made for it, and deleted after it."""
    done: list[FinishedPart] = field(default_factory=list)
    _child: subprocess.Popen[str] | None = None

    def run(self) -> None:
        try:
            if self.owned and self.parts:
                self._cluster("up")
            for part in self.parts:
                if not self.stop.is_set():
                    self.done.append(self._part(part))
        finally:
            if self.owned and self.parts:
                self._cluster("down")

    def interrupt(self) -> None:
        """As Ctrl-C does: pytest lets its fixtures clean up."""
        if self._child is not None:
            self._child.send_signal(signal.SIGINT)

    def _part(self, part: Part) -> FinishedPart:
        names = " ".join(Path(file).stem.removeprefix("test_") for file in part)
        log = LOGS / f"{names.replace(' ', '-')}.log"
        say(f"== {self.name}: {names} begins ({log.relative_to(ROOT)})")
        words = [sys.executable, "-m", "pytest", "-q", "-m", self.marks, "--durations=12", *WITHOUT]
        files = [str(ROOT / "tests" / file) for file in part]
        began = time.monotonic()
        with log.open("w") as out:
            self._child = subprocess.Popen(
                [*words, *files],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env=self.environment,
                text=True,
                process_group=0,  # a Ctrl-C reaches it by `interrupt`, and once
            )
            status = self._child.wait()
        text, seconds = log.read_text(), time.monotonic() - began
        say(f"== {self.name}: {names} took {seconds:.0f} s\n{text}")
        return FinishedPart(part, seconds, status, (text.splitlines() or [""])[-1])

    def _cluster(self, command: str) -> None:
        words = [sys.executable, "-m", "pds_cluster", command]
        subprocess.run(words, cwd=ROOT / "cluster", env=self.environment, check=True)


def lanes(chosen: list[str], marks: str, stop: threading.Event) -> list[ClusterLane]:
    """Both, with the parts whose files' names hold one of the words; with all where none is."""
    here = {**os.environ, "OMP_NUM_THREADS": "1"}
    second = here | other_instance(here)

    def of(parts: tuple[Part, ...]) -> tuple[Part, ...]:
        return tuple(
            part
            for part in parts
            if not chosen or any(word in Path(file).stem for word in chosen for file in part)
        )

    if "PDS_CONTEXT" in here:
        return [ClusterLane("yours", of(ROLLOUTS + OTHERS), here, marks, stop)]
    return [
        ClusterLane("rollouts", of(ROLLOUTS), here, marks, stop),
        ClusterLane("others", of(OTHERS), second, marks, stop, owned=True),
    ]


def other_instance(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an instance beside that which `environment` names."""
    name = environment.get("PDS_CLUSTER_NAME", "local")
    block = int(environment.get("PDS_CLUSTER_BLOCK", "0"))
    other = {
        "PDS_CLUSTER_NAME": name[:9] + ("3" if name.endswith("2") else "2"),
        "PDS_CLUSTER_BLOCK": str((block + 1) % 16),
    }
    if folder := environment.get("PDS_CLUSTER_DIR"):
        other["PDS_CLUSTER_DIR"] = f"{folder}-2"
    return other


_printing = threading.Lock()


def say(text: str) -> None:
    with _printing:
        print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="The tests on the local Kubernetes.")
    parser.add_argument("--soak", action="store_true", help="those marked soak too")
    parser.add_argument("words", nargs="*", help="parts whose names hold one of them")
    asked = parser.parse_args()
    marks = "cluster" if asked.soak else "cluster and not soak"
    stop = threading.Event()
    LOGS.mkdir(parents=True, exist_ok=True)
    # Both end it in order; pytest too, which would ignore SIGINT where a shell's `&` did so first.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    began, both = time.monotonic(), lanes(asked.words, marks, stop)
    with ThreadPoolExecutor(len(both)) as pool:
        running = [pool.submit(lane.run) for lane in both]
        try:
            for each in running:
                each.result()
        except BaseException:
            stop.set()
            for lane in both:
                lane.interrupt()
            raise
    done = [(lane.name, part) for lane in both for part in lane.done]
    for name, finished in done:
        files = " ".join(finished.part)
        print(f"{finished.seconds:6.0f} s  {name:8} {files}: {finished.summary}")
    print(f"{time.monotonic() - began:6.0f} s  in all")
    # 5: nothing of a part is asked for, as where all of it is a soak.
    failed = [" ".join(each.part) for _, each in done if each.status not in (0, 5)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
