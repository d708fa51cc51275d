"""The cluster's programs, built from their Go modules once, cached by what they are made of."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pds_cluster.errors import ClusterError
from pds_cluster.settings import CLUSTER_DIR, COREDNS, HELM, KUBERNETES, KWOK, Settings, say
from pds_cluster.shell import locked, run

KUBE = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
# Programs with dependency sets of their own: name → module path of the command, at a version.
OTHERS = {
    "helm": f"helm.sh/helm/v3/cmd/helm@{HELM}",
    "coredns": f"github.com/coredns/coredns@{COREDNS}",
}
PROGRAMS = (*KUBE, *OTHERS, "pause")
FLAGS = ("-trimpath", "-v")
SOURCES = ("go.mod", "go.sum", "pause.c")


def _ldflags() -> str:
    """Without a version the node would report v0.0.0-master, and Helm refuse charts for it."""
    package = "k8s.io/component-base/version"
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor}
    return " ".join(("-s -w", *(f"-X {package}.{key}={value}" for key, value in values.items())))


def key() -> str:
    """Changes with anything that the programs are made from."""
    state = hashlib.sha256(repr((_ldflags(), OTHERS, FLAGS)).encode())
    for name in SOURCES:
        state.update((CLUSTER_DIR / name).read_bytes())
    return state.hexdigest()[:12]


def folder(settings: Settings) -> Path:
    return settings.cache / f"cluster-{key()}"


def ensure(settings: Settings, names: Sequence[str] = PROGRAMS) -> Path:
    """The folder with the programs; builds what is not in the cache. Minutes, the first time."""
    target = folder(settings)
    if missing(target, names):
        with locked(target.with_suffix(".lock")):
            _build(settings, target, names)
    return target


def kwok(settings: Settings) -> Path:
    """The program that stands in for kubelets, for benchmarks; built when it is first asked for."""
    target = settings.cache / f"kwok-{KWOK}"
    target.mkdir(parents=True, exist_ok=True)
    with locked(target.with_suffix(".lock")):
        if not (target / "kwok").exists():
            making = target / "making"
            making.mkdir(exist_ok=True)
            module = f"sigs.k8s.io/kwok/cmd/kwok@{KWOK}"
            _go_install("kwok", ["-ldflags", "-s -w", module], making, making)
            (making / "kwok").replace(target / "kwok")
    return target / "kwok"


def missing(target: Path, names: Sequence[str] = PROGRAMS) -> list[str]:
    return [name for name in names if not (target / name).exists()]


def _build(settings: Settings, target: Path, names: Sequence[str]) -> None:
    lacking = missing(target, names)
    if not lacking:  # somebody else built while we waited
        return
    say(f"building {', '.join(lacking)} (once; kept in {settings.cache})")
    making = target.with_suffix(".making")
    making.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    if any(name in lacking for name in KUBE):
        arguments = ["-ldflags", _ldflags(), "tool"]
        _go_install("Kubernetes", arguments, making, CLUSTER_DIR)
    for name, module in OTHERS.items():
        if name in lacking:
            _go_install(name, ["-ldflags", "-s -w", module], making, making)
    if "pause" in lacking:
        source = CLUSTER_DIR / "pause.c"
        run("gcc", "-static", "-Os", "-s", "-o", making / "pause", source)
    for path in making.iterdir():
        path.replace(target / path.name)  # whole or not at all
    making.rmdir()


def _go_install(title: str, arguments: list[str], into: Path, cwd: Path) -> None:
    if shutil.which("go") is None:
        raise ClusterError(
            "Go is not installed, and the programs of the cluster are not in the cache",
            "Install Go 1.24 or later (https://go.dev/doc/install), or set PDS_CONTEXT.",
        )
    env = {**os.environ, "GOBIN": str(into), "CGO_ENABLED": "0", "GOWORK": "off"}
    total = _packages(arguments[-1], cwd, env)
    child = subprocess.Popen(
        ["nice", "-n", "5", "go", "install", *FLAGS, *arguments],
        cwd=cwd,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    progress = _Progress(title, total)
    lines: list[str] = []
    for line in child.stderr or ():
        lines.append(line.rstrip())
        progress.count += not line.startswith("go: ")
    progress.end()
    if child.wait() != 0:
        raise ClusterError(f"building {title} failed", "\n".join(lines[-20:]))


def _packages(what: str, cwd: Path, env: Mapping[str, str]) -> int:
    """How many packages `what` is made of; 0 when that can only be known by fetching it first."""
    if "@" in what:
        return 0
    listed = subprocess.run(
        ["go", "list", "-deps", what], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    return len(listed.stdout.splitlines())


class _Progress:
    """`title: 812 of 1,630 packages, 95 s`: in place on a terminal, else a line every 15 s."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.count = title, total, 0
        self._live = sys.stderr.isatty()
        self._started = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._thread.start()

    def _text(self) -> str:
        of = f" of {self.total:,}" if self.total else ""
        seconds = time.monotonic() - self._started
        return f"  {self.title}: {self.count:,}{of} packages compiled, {seconds:.0f} s"

    def _show(self) -> None:
        while not self._done.wait(0.5 if self._live else 15):
            if self._live:
                print(f"\r\x1b[K{self._text()}", end="", file=sys.stderr, flush=True)
            else:
                say(self._text())

    def end(self) -> None:
        self._done.set()
        self._thread.join()
        print("\r\x1b[K" if self._live else "", end="", file=sys.stderr)
        say(self._text())
