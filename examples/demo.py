"""`make demo`: from nothing to a streamed answer on a real Kubernetes.

Brings the local cluster up (or uses PDS_CONTEXT), installs the chart, applies examples/chat.yaml,
waits on its conditions, asks the endpoint a question, and prints the URL and what to try next.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "cluster"))

from pds_cluster import own, up  # noqa: E402
from pds_cluster.errors import ClusterError  # noqa: E402
from pds_cluster.local_values import write_local_values  # noqa: E402
from pds_cluster.settings import Settings, load, say  # noqa: E402

NAMESPACE, SYSTEM, NAME = "pds-demo", "pds-system", "chat"
QUESTION = "The value of fig is 12. The value of plum is 47. What is the value of plum?"
READY_SECONDS = 600
HELLO = '{"model": "tiny", "messages": [{"role": "user", "content": "Hello"}]}'


class Demo:
    """One cluster, its programs, and what was installed on it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.local = settings.context is None
        if self.local:
            access = ["--kubeconfig", str(settings.kubeconfig)]
            self.kubectl_words = [str(settings.bin / "kubectl"), *access]
            self.helm_words = [str(settings.bin / "helm"), *access]
        else:
            self.kubectl_words = ["kubectl", "--context", str(settings.context)]
            self.helm_words = ["helm", "--kube-context", str(settings.context)]

    def cluster(self) -> None:
        if self.local:
            up.up(self.settings)
        else:
            own.check(str(self.settings.context))
            if shutil.which("helm") is None:
                raise ClusterError("there is no helm", "Install Helm 3, or unset PDS_CONTEXT.")

    def chart(self) -> None:
        values = ["--values", str(write_local_values(self.settings))] if self.local else []
        run(
            *self.helm_words, "upgrade", "--install", "pdserving", str(ROOT / "charts/pdserving"),
            "--namespace", SYSTEM, "--create-namespace", *values, "--wait", "--timeout", "180s",
        )  # fmt: skip

    def apply(self) -> None:
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(namespace))
        self.kubectl("apply", "-n", NAMESPACE, "-f", str(ROOT / "examples/chat.yaml"))

    def wait(self) -> None:
        """Show each condition as it changes, until Ready, or until READY_SECONDS are over."""
        shown: dict[str, str] = {}
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            found = json.loads(self.kubectl("get", "-n", NAMESPACE, "pds", NAME, "-o", "json"))
            status = found.get("status", {})
            conditions = {c["type"]: c for c in status.get("conditions", [])}
            for kind, condition in conditions.items():
                line = f"{condition['status']}  {condition['reason']}: {condition['message']}"
                if shown.get(kind) != line:
                    shown[kind] = line
                    say(f"  {kind:<12} {line}")
            current = status.get("observedGeneration") == found["metadata"]["generation"]
            if current and conditions.get("Ready", {}).get("status") == "True":
                return
            time.sleep(0.5)
        raise ClusterError(
            f"{NAME} is not Ready after {READY_SECONDS} s",
            f"Look at: {' '.join(self.kubectl_words)} -n {NAMESPACE} describe pds {NAME}",
        )

    @contextlib.contextmanager
    def endpoint(self) -> Iterator[str]:
        """A URL of the router that this machine reaches."""
        service = json.loads(self.kubectl("get", "-n", NAMESPACE, "svc", NAME, "-o", "json"))
        port = service["spec"]["ports"][0]["port"]
        if self.local:  # the local node's Service addresses are routed from this machine
            yield f"http://{service['spec']['clusterIP']}:{port}"
            return
        words = [*self.kubectl_words, "-n", NAMESPACE, "port-forward", f"svc/{NAME}", f":{port}"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as forward:
            line = forward.stdout.readline() if forward.stdout else ""
            try:
                yield f"http://{line.split()[2]}"
            finally:
                forward.terminate()

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        return run(*self.kubectl_words, *words, stdin=stdin)


def run(*words: str, stdin: str | None = None) -> str:
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(words[:1] + words[3:])} failed", done.stderr.strip())
    return done.stdout


def ask(url: str, question: str) -> Iterator[str]:
    """The answer's pieces, as the server sends them."""
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": 64,
        "stream": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            for line in answer:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield _text(json.loads(line[6:]))
    except urllib.error.HTTPError as error:
        raise ClusterError(f"the endpoint answered {error.code}", error.read().decode()) from error


def _text(event: dict[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    return str((choices[0].get("delta") or {}).get("content") or "")


def main() -> int:
    started = time.monotonic()

    def step(title: str) -> None:
        say(f"\n[{time.monotonic() - started:5.1f} s] {title}")

    try:
        demo = Demo(load())
        step("a Kubernetes cluster")
        demo.cluster()
        step("the operator, from charts/pdserving")
        demo.chart()
        step("kubectl apply -f examples/chat.yaml: 2 prefill groups, 1 decode group, 1 router")
        demo.apply()
        demo.wait()
        with demo.endpoint() as url:
            step(f"asking {url}")
            print(f"\n  > {QUESTION}\n  ", end="", flush=True)
            for piece in ask(url, QUESTION):
                print(piece, end="", flush=True)
            step("done")
            print(_next(demo, url))
    except ClusterError as error:
        say(f"error: {error}")
        return 1
    return 0


def _next(demo: Demo, url: str) -> str:
    kubectl = " ".join(demo.kubectl_words)
    reach = f"  chat page            {url}/"
    if not demo.local:
        reach = f"  reach it             {kubectl} -n {NAMESPACE} port-forward svc/{NAME} 8000"
        url = "http://127.0.0.1:8000"
    settings, plugin = demo.settings, Path(sys.executable).parent
    if demo.local:
        shell = f"export KUBECONFIG={settings.kubeconfig} PATH={plugin}:{settings.bin}:$PATH"
        context = ""
    else:
        shell, context = f"export PATH={plugin}:$PATH", f" --context {settings.context}"
    return f"""
{reach}
  OpenAI API           {url}/v1
  ask                  curl {url}/v1/chat/completions -H 'content-type: application/json' \\
                         -d '{HELLO}'
  look                 {kubectl} -n {NAMESPACE} get pds,pods
  scale                {kubectl} -n {NAMESPACE} patch pds {NAME} --type merge \\
                         -p '{{"spec": {{"decode": {{"replicas": 2}}}}}}'
  as a plugin          {shell}
                       kubectl pds status {NAME} -n {NAMESPACE}{context}
  remove               {kubectl} delete namespace {NAMESPACE}; make cluster-down"""


if __name__ == "__main__":
    sys.exit(main())
