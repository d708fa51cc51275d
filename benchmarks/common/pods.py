"""Two pods of the current cluster, for what is measured from pod to pod."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from common import say

Place = tuple[list[str], str]
"""How to start a process there, and its address."""


@contextmanager
def real_pods(values: Path) -> Iterator[list[Place]]:
    """Two pods of the current cluster, removed at the end."""
    tree = yaml.safe_load(values.read_text())
    image, defaults = tree["image"], tree["podDefaults"]
    names = [f"handover-{os.getpid()}-{side}" for side in "ab"]
    container = {
        "name": "rank",
        "image": f"{image['repository']}:{image['tag']}",
        "imagePullPolicy": image["pullPolicy"],
        "command": ["sleep", "3600"],
        "env": defaults["env"],
        "resources": {"requests": {"cpu": "400m"}},  # without, a busy node starves them
        "volumeMounts": defaults["volumeMounts"],
    }
    spec = {
        "containers": [container],
        "volumes": defaults["volumes"],
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
    }
    try:
        for name in names:
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
            _kubectl("apply", "-f", "-", text=json.dumps(pod))
        for name in names:
            say(f"waiting for pod {name} (at most 120 s)")
            _kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s")
        address = "jsonpath={.status.podIP}"
        yield [
            (["kubectl", "exec", "-i", name, "--"], _kubectl("get", "pod", name, "-o", address))
            for name in names
        ]
    finally:
        _kubectl("delete", "pod", "--ignore-not-found", "--wait=false", *names)


def _kubectl(*arguments: str, text: str = "") -> str:
    done = subprocess.run(
        ["kubectl", *arguments], input=text, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()
