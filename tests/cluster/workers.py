"""Worker processes of engine pods, held, stopped and killed while a prompt is computed."""

import json
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path

from serving import Object, Serving
from streams import Body, StreamOutcome, beside

LONG: Body = {"prompt": [16 + i % 997 for i in range(2000)], "max_tokens": 8, "ignore_eos": True}
"""16 chunks of 128."""
CHUNKS = 16
BACK = 240.0
"""Seconds within which a group is there again; it takes 10 to 70 on two busy cores, for torch."""


class PodProcess:
    """A process of a pod, seen from the node that this test runs on."""

    def __init__(self, pod: Object, *words: str) -> None:
        """The one whose command line has arguments that end with all of `words`."""
        self._pid = _pid(pod["metadata"]["uid"], words)

    def stop(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def go_on(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)

    def kill(self) -> float:
        """kill -9; when."""
        os.kill(self._pid, signal.SIGKILL)
        return time.monotonic()


class WorkerProcess(PodProcess):
    """The worker process of an engine's pod."""

    def __init__(self, pod: Object, rank: int = 0) -> None:
        super().__init__(pod, "pds_engine.child", f"worker-{rank}")


def _pid(uid: str, wanted: tuple[str, ...]) -> int:
    """By the command line, and the pod's UID in the control group."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_text(errors="replace").split("\0")
            ours = all(any(word.endswith(each) for word in words) for each in wanted)
            if ours and uid in (folder / "cgroup").read_text():
                return int(folder.name)
    raise LookupError(f"no {' '.join(wanted)} of pod {uid}")


def leader(serving: Serving, role: str, group: int = 0) -> Object:
    """The pod that leads the newest attempt."""
    return newest(serving, role, group)[0]


def newest(serving: Serving, role: str, group: int = 0) -> list[Object]:
    """The pods of the newest attempt, the leader first."""
    found = [pod for pod in serving.pods(role) if label(pod, "group") == group]
    last = max(label(pod, "attempt") for pod in found)
    pods = [pod for pod in found if label(pod, "attempt") == last]
    return sorted(pods, key=lambda pod: label(pod, "rank-pod"))


def label(pod: Object, name: str) -> int:
    return int(pod["metadata"]["labels"][f"pdserving.io/{name}"])


def held_in_prefill(serving: Serving, pod: Object, worker: WorkerProcess) -> bool:
    """Stop the worker amid the chunks of a prompt that is under way; whether that came about."""
    before, deadline = serving.state(pod)["steps_done"], time.monotonic() + 10
    while serving.state(pod)["steps_done"] < before + 2:
        if time.monotonic() > deadline:
            return False
    worker.stop()
    # What was on its way to the scheduler when the worker stopped comes within 50 ms.
    done = -1
    while done != (state := serving.state(pod))["steps_done"]:
        done = state["steps_done"]
        time.sleep(0.2)
    if state["in_flight"] and state["kv_used"] and done < before + CHUNKS:
        return True
    worker.go_on()
    return False


def amid_prefill(
    serving: Serving,
    pod: Object,
    work: Callable[[], StreamOutcome],
    then: Callable[[WorkerProcess, Future[StreamOutcome]], None],
    worker: WorkerProcess | None = None,
) -> StreamOutcome:
    """Do `then` while the long prompt of `work` is half computed in the group that `pod` leads.

    `worker` is the one that holds it up meanwhile, by default the leader's. Returns what `work`
    got.
    """
    worker = worker or WorkerProcess(pod)
    for _ in range(5):
        with beside(work) as asked:
            if held_in_prefill(serving, pod, worker):
                try:
                    then(worker, asked)
                finally:
                    worker.go_on()
                return asked.result()
            asked.result()
    raise AssertionError("the prompt was always computed before its worker could be stopped")


def comes_back(
    serving: Serving, role: str, group: int, attempt: int, since: float, pods: int = 1
) -> float:
    """Seconds until the group serves again, as that attempt and under that name."""
    name = f"{serving.name}-{role[0]}-{group}-{attempt}"
    wanted = [f"{name}-{rank_pod}" for rank_pod in range(pods)]

    def there() -> bool:
        names = [pod["metadata"]["name"] for pod in serving.pods(role)]
        mine = [each for each in names if each.startswith(f"{serving.name}-{role[0]}-{group}-")]
        return sorted(mine) == wanted and is_ready(leader(serving, role, group))

    serving.until(f"back as {name}", there, BACK)
    serving.settled(BACK)
    return time.monotonic() - since


def is_ready(pod: Object) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True"


def why(serving: Serving) -> str:
    """What the last Event about a failed group says."""
    words = ("-n", serving.namespace, "get", "events", "-o", "json")
    events = json.loads(serving.cluster.kubectl(*words))["items"]
    about = [each for each in events if each["reason"] == "FailedGroupReplaced"]
    return str(max(about, key=lambda each: each["metadata"]["creationTimestamp"])["message"])
