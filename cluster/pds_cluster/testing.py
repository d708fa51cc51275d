"""What tests (and only tests) use to talk to a cluster: the local one, or one of the user's own."""

import atexit
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pds_cluster import diagnosis, own, status, volumes
from pds_cluster.errors import ClusterError
from pds_cluster.local_values import write_local_values
from pds_cluster.settings import TREE, Settings, load
from pds_cluster.shell import locked, run

SYSTEM = "pds-system"
"""Where the chart's operator is."""
_in_use: dict[str, "Cluster"] = {}
"""The clusters by the namespaces that tests use right now."""


@dataclass(frozen=True)
class Cluster:
    """A cluster that answers. `settings.context` says whether it is the user's own."""

    settings: Settings
    kubeconfig: Path
    context: str
    program: str

    @property
    def is_local(self) -> bool:
        return self.settings.context is None

    def command(self, *words: str) -> list[str]:
        """The kubectl command line, for what has to run beside the test (port-forward, -w)."""
        return [
            self.program,
            f"--kubeconfig={self.kubeconfig}",
            f"--context={self.context}",
            *words,
        ]

    def kubectl(self, *words: str, stdin: str | None = None, timeout: float = 120) -> str:
        """What kubectl prints. Raises ClusterError with its complaint."""
        return run(*self.command(*words), stdin=stdin, timeout=timeout).stdout

    def apply(self, *objects: dict[str, Any], namespace: str) -> None:
        content = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.kubectl("-n", namespace, "apply", "-f", "-", stdin=content)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.kubectl("-n", namespace, "get", kind, name, "-o", "json")
        )
        return found

    def read(self, path: str, accept: str = "application/json") -> dict[str, Any]:
        """What a GET of `path` answers: for looks again and again, each of which would cost a
        kubectl a tenth of a second of a core. Raises ClusterError with the server's complaint.
        """
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        request = urllib.request.Request(f"{self._proxied}{path}", headers={"Accept": accept})
        try:
            with opener.open(request, timeout=30) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            with error:
                raise ClusterError(f"GET {path}: {error.code}", error.read().decode()) from error
        except OSError as error:
            raise ClusterError(f"GET {path}: {error}") from error

    @cached_property
    def _proxied(self) -> str:
        """Where a `kubectl proxy` listens, which ends with this process."""
        words = self.command("proxy", "--port=0")
        child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

        def end() -> None:
            child.terminate()
            child.communicate()

        atexit.register(end)
        line = child.stdout.readline() if child.stdout else ""
        host, found, port = line.strip().rpartition(":")
        if not found:
            raise ClusterError("`kubectl proxy` has not started", line)
        return f"http://{host.split()[-1]}:{port}"

    def wait(self, what: str, condition: str, namespace: str, timeout: int = 60) -> None:
        """`kubectl wait`, as in wait("pod/a", "Ready", …) or wait("pvc/a", "jsonpath=…", …)."""
        word = condition if "=" in condition else f"condition={condition}"
        words = ("wait", what, f"--for={word}", f"--timeout={timeout}s")
        self.kubectl("-n", namespace, *words, timeout=timeout + 10)

    def client_options(self) -> dict[str, str]:
        """Arguments for `kubernetes.config.new_client_from_config` and its aio twin."""
        return {"config_file": str(self.kubeconfig), "context": self.context}

    @contextmanager
    def namespace(self) -> Iterator[str]:
        """A fresh namespace; its pods are gone when the block ends, the rest soon after."""
        if self.is_local:
            with locked(self.settings.lock):
                volumes.ensure(self.settings)
        name = f"test-{uuid4().hex[:8]}"
        self.kubectl("create", "namespace", name)
        _in_use[name] = self
        try:
            yield name
        finally:
            del _in_use[name]
            # Marked first, so that nobody makes new pods in it; then the pods, without their
            # grace, which is not under test any more. The rest the API server does on its own.
            self.kubectl("delete", "namespace", name, "--wait=false")
            self.kubectl("-n", name, "delete", "pods", "--all", "--grace-period=1")

    @contextmanager
    def forward(self, what: str, port: int, namespace: str) -> Iterator[int]:
        """`kubectl port-forward` to `port` of `what`; yields the local port it chose."""
        words = ("-n", namespace, "port-forward", what, f":{port}")
        with subprocess.Popen(
            self.command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as child:
            try:
                line = child.stdout.readline() if child.stdout else ""
                if "Forwarding from" not in line:
                    raise ClusterError(f"port-forward to {what} failed", line)
                yield int(line.split("->")[0].rpartition(":")[2])
            finally:
                child.terminate()


def install(cluster: Cluster, release: Path = TREE) -> None:
    """This tree's chart, as `make demo` installs it; pods run the working tree.

    release: a checkout of another version below it, whose chart and packages are taken instead.

    Raises:
        ClusterError: it is a cluster of the user's own, which mounts no working tree.
    """
    if not cluster.is_local:
        raise ClusterError("only the local cluster runs the working tree", "`make cluster-up`")
    run(
        cluster.settings.bin / "helm", f"--kubeconfig={cluster.kubeconfig}", "upgrade", "--install",
        "pdserving", release / "charts" / "pdserving",
        f"--namespace={SYSTEM}", "--create-namespace", "--wait", "--timeout=180s",
        f"--values={write_local_values(cluster.settings, release)}",
        timeout=200,
    )  # fmt: skip


def find(settings: Settings) -> Cluster:
    """The cluster that tests are to use. Raises ClusterError when it does not answer."""
    if settings.context is not None:
        own.check(settings.context)
        return Cluster(settings, Path(own.kubeconfig()), settings.context, "kubectl")
    missing = status.missing(settings)
    if missing:
        raise ClusterError(f"no local cluster: {missing[0]} does not run", "`make cluster-up`")
    return Cluster(settings, settings.kubeconfig, settings.id, str(settings.bin / "kubectl"))


def required() -> Cluster:
    """The cluster that is up. Without one the test is skipped, or fails if PDS_REQUIRE_CLUSTER."""
    try:
        return find(load())
    except ClusterError as error:
        message = f"needs a cluster (`make cluster-up`, or PDS_CONTEXT=name): {error}"
        if os.environ.get("PDS_REQUIRE_CLUSTER"):
            pytest.fail(message)
        pytest.skip(message)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """For a conftest to import: a test that fails shows what its namespaces hold, and ours.

    A fixture that fails does so in each test that asks for it, by one exception, which is reported
    once.
    """
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if report.failed and error is not item.config.stash.get(_REPORTED, None):
        item.config.stash[_REPORTED] = error
        report.sections += sections()
    return report


_REPORTED = pytest.StashKey[BaseException | None]()


def sections() -> list[tuple[str, str]]:
    """A heading and a report, for each namespace in use and the operator's."""
    spaces = list(_in_use.items())
    spaces += [(SYSTEM, cluster) for _, cluster in spaces[:1]]
    return [(f"namespace {name}", diagnosis.report(cluster, name)) for name, cluster in spaces]
