"""Bad revisions: each is given up while the one before it serves, and conditions say why."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pds_engine.server.job
import pytest
from serving import MODEL, Object, Serving, serving_uids
from streams import REST, Question, crowd, known

pytestmark = pytest.mark.cluster

GIVEN_UP = 240
"""Seconds within which a revision is given up; engines start in 10 to 70 on two busy cores."""
SEEN = 60
"""Seconds within which what keeps pods from starting is in status."""
CLIENTS = 2
ROLES = ("prefill", "decode")


@pytest.fixture(scope="module")
def served(chat: Serving) -> Serving:
    """At rest on a revision that is good."""
    chat.sized(prefill=1, decode=1)
    return chat


@pytest.fixture(scope="module")
def questions(served: Serving) -> list[Question]:
    return known(served, at_least=4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that pods may mount: they run as another user."""
    found = tmp_path / "mounted"
    found.mkdir()
    found.chmod(0o755)
    return found


def pds(serving: Serving, verb: str) -> None:
    """`kubectl pds verb`, as a user runs it."""
    plugin = Path(sys.prefix) / "bin" / "kubectl-pds"
    path = f"{serving.cluster.settings.bin}:{os.environ['PATH']}"
    environment = {**os.environ, "KUBECONFIG": str(serving.cluster.kubeconfig), "PATH": path}
    words = [str(plugin), verb, serving.name, "-n", serving.namespace]
    subprocess.run(words, env=environment, check=True, timeout=60, capture_output=True)


def mounted(source: Path, path: str) -> Object:
    """A role of one group whose engine sees `source`, of this machine, at `path`."""
    kind = "Directory" if source.is_dir() else "File"
    mount = {"name": "broken", "mountPath": path, "readOnly": True}
    return {
        "replicas": 1,
        "resources": {"requests": {"cpu": "100m"}},
        "podTemplate": {
            "spec": {
                "volumes": [{"name": "broken", "hostPath": {"path": str(source), "type": kind}}],
                "containers": [{"name": "engine", "volumeMounts": [mount]}],
            }
        },
    }


@contextmanager
def unharmed(served: Serving, questions: list[Question]) -> Iterator[None]:
    """Clients that ask all the while, of whom none fails; the same groups serve at the end."""
    good, before = served.object, serving_uids(served)
    with crowd(served.url, questions, clients=CLIENTS, rest=REST) as clients:
        clients.goes_on()
        try:
            yield
        finally:
            served.object = good
        clients.goes_on()
    assert not clients.troubles
    assert serving_uids(served) == before
    print(f"  {len(clients.outcomes)} requests, none failed")


def given_up(served: Serving, reason: str) -> str:
    """Wait until the spec's revision is given up; why, as the condition has it."""

    def why() -> str:
        found = served.conditions()["Degraded"]
        fresh = found["observedGeneration"] == served.get()["metadata"]["generation"]
        return str(found["message"]) if fresh and found["reason"] == "RevisionFailed" else ""

    began = time.monotonic()
    message: str = served.until("given up", why, GIVEN_UP)
    print(f"{reason}: given up in {time.monotonic() - began:.1f} s: {message}")
    assert f"has failed, and {serving_revision(served)} serves in its place: {reason}" in message
    assert served.conditions()["Ready"]["status"] == "True"
    assert served.get()["spec"] == served.object["spec"]  # which nobody but users write
    events = events_of(served, "RevisionFailed")
    assert any(reason in event["message"] for event in events)
    assert all(event["type"] == "Warning" for event in events)
    return message


def degraded(served: Serving, reason: str) -> str:
    """What Degraded says for that reason; empty while it gives another or none."""
    found = served.conditions()["Degraded"]
    return str(found["message"]) if found["reason"] == reason else ""


def serving_revision(served: Serving) -> str:
    found = served.get()["status"]["currentRevision"]
    return str(found).removeprefix(f"{served.name}-")


def events_of(served: Serving, reason: str) -> list[Object]:
    chosen = f"involvedObject.name={served.name},reason={reason}"
    words = ("-n", served.namespace, "get", "events", "--field-selector", chosen, "-o", "json")
    items: list[Object] = json.loads(served.cluster.kubectl(*words))["items"]
    return items


def undone(served: Serving) -> None:
    """`kubectl pds undo` brings the spec back to what serves, and with it the conditions."""
    pds(served, "undo")
    served.settled(60)


def test_an_image_that_nobody_has(served: Serving, questions: list[Question]) -> None:
    """Routers come first: the new one's pod is what waits for the image."""
    with unharmed(served, questions):
        began = time.monotonic()
        served.apply(image="localhost/nowhere:0", imagePullPolicy="IfNotPresent")
        message = served.until("reported", lambda: degraded(served, "ImagePullBackOff"), SEEN)
        print(f"a bad image: in status after {time.monotonic() - began:.1f} s: {message}")
        assert "localhost/nowhere:0" in message
        assert "put the image right in the spec" in message
        # What it has waited counts: the time that it has had is over at once.
        served.apply(rollout={"drainSeconds": 30, "progressDeadlineSeconds": 20})
        message = given_up(served, "ProgressDeadlineExceeded")
        assert "localhost/nowhere:0" in message
        assert "ErrImagePull" in message or "ImagePullBackOff" in message
        undone(served)


def test_a_model_that_does_not_load(
    served: Serving, questions: list[Question], folder: Path
) -> None:
    """Its weights are cut off: the configuration reads well, and the worker cannot go on."""
    for path in MODEL.iterdir():
        shutil.copyfile(path, folder / path.name)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with unharmed(served, questions):
        model = {**served.object["spec"]["model"], "source": {"path": "/given"}}
        served.apply(model=model, **{role: mounted(folder, "/given") for role in ROLES})
        message = given_up(served, "ConfigurationError")
        assert "/given/model.safetensors" in message
        undone(served)


def test_a_warm_up_that_fails(served: Serving, questions: list[Question]) -> None:
    """It asks for compiled kernels where there is no compiler; no pod of it is ever made."""
    broken = {"name": "warmup", "env": [{"name": "CXX", "value": "/bin/false"}]}
    with unharmed(served, questions):
        served.apply(
            compileCache={"volume": {"claim": {"size": "1Gi"}}, "warmup": {"enabled": True}},
            **{
                role: {
                    **served.object["spec"][role],
                    "podTemplate": {"spec": {"initContainers": [broken]}},
                }
                for role in ROLES
            },
        )
        served.until("compiling", lambda: progressing(served) == "WarmupRunning", GIVEN_UP)
        message = given_up(served, "WarmupFailed")
        assert "the C++ compiler /bin/false does not run" in message
        undone(served)


def progressing(served: Serving) -> str:
    return str(served.conditions()["Progressing"]["reason"])


def test_a_revision_that_answers_500(
    served: Serving, questions: list[Question], folder: Path
) -> None:
    """A slip in its code, in every chat: the router asks the old groups in its place."""
    source = Path(pds_engine.server.job.__file__)
    right, slip = "= tokenizer.template\n", "= tokenizer.chat_template\n"
    broken = folder / source.name
    broken.write_text(source.read_text().replace(right, slip))
    broken.chmod(0o644)
    assert slip in broken.read_text()
    with unharmed(served, questions):
        served.apply(
            rollout={"drainSeconds": 30, "minReadySeconds": 60},
            **{role: mounted(broken, str(source)) for role in ROLES},
        )
        message = given_up(served, "ErrorRate")
        assert "requests to it failed, 0 of " in message
        undone(served)
