"""The router's configuration: one frozen model, read as the engine's is."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pds_engine.config import Section, parse, read_tree

Policy = Literal["roundRobin", "leastTokens", "powerOfTwo", "prefixAware", "session"]


class AuthConfig(Section):
    secret_dir: Path
    """A mounted Secret: every line of every file in it is an API key."""


class KubernetesConfig(Section):
    """How the API server is reached: a kubeconfig, or the pod's own service account."""

    kubeconfig: Path | None = None
    context: str | None = None
    """None: the kubeconfig's current one."""


class HealthConfig(Section):
    """When a backend is polled, and when it is given up."""

    interval: float = Field(1.0, gt=0)
    """Seconds between two polls of a backend's /pds/state, ±10%."""
    start_interval: float = Field(0.2, gt=0)
    """The same until it has answered for the first time."""
    timeout: float = Field(2.0, gt=0)
    misses: int = Field(3, ge=1)
    """Polls in a row that may fail before no request is sent there any more."""
    lost_after: float = Field(15.0, gt=0)
    """Seconds of silence after which its open requests are given up: a hang is not a crash."""
    open_after: int = Field(3, ge=1)
    """Failed requests in a row that open the circuit."""
    open_seconds: float = Field(1.0, gt=0)
    """How long it stays open at first; doubled at each failed trial, up to open_max."""
    open_max: float = Field(30.0, gt=0)


class RouterConfig(Section):
    pdserving: str = "local"
    """The PDServing whose pods are followed (label pdserving.io/name)."""
    namespace: str = "default"
    model: str = "default"
    """What /v1/models lists."""
    policy: Policy = "leastTokens"
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    metrics_port: int | None = Field(9090, ge=0, le=65535)
    """None: /metrics is served on the main port alone."""
    keys_dir: Path | None = None
    """A mounted Secret of control keys: hmac.key, of groups that do not report theirs, and
    <id>.key of the others. Read again as it changes. None: only unified groups can be served."""
    backends: tuple[str, ...] = ()
    """http://host:port of engines, for use without Kubernetes; empty: pods are watched."""
    auth: AuthConfig | None = None
    kubernetes: KubernetesConfig = KubernetesConfig()
    health: HealthConfig = HealthConfig()
    max_body_bytes: int = Field(8 << 20, ge=1024)
    max_held_bytes: int = Field(64 << 20, ge=1024)
    """Bytes of the bodies of all open requests: a retry needs a body until its answer is whole."""
    body_timeout: float = Field(60.0, gt=0)
    """Seconds that a client may take to send its body."""
    max_in_flight: int = Field(1024, ge=1)
    """Requests open at once; beyond it the answer is 429."""
    attempts: int = Field(3, ge=1, le=10)
    """Pairs that may fail with a request before the first byte of its answer. A pair that turns it
    away, or that no connection reaches, does not count, and is not tried again."""
    migrations: int = Field(3, ge=0, le=10)
    """How often a stream may break off and migrate to another pair. Pairs that fail before they go
    on with it count too; preemptions do not."""
    resume_seconds: float = Field(120.0, ge=0)
    """How long such a stream waits for a pair: a crashed group comes back in that time."""
    connect_timeout: float = Field(2.0, gt=0)
    drain_seconds: float = Field(120.0, ge=0)
    """How long open streams may last after SIGTERM; requests that follow on their connections may
    last as long again."""
    linger_seconds: float = Field(5.0, ge=0)
    """How long new requests are accepted after SIGTERM: endpoints lag behind."""
    seed: int = 0
    """Seeds the router's own draws (power of two choices)."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


ENVIRONMENT: Mapping[str, str] = {
    "KUBECONFIG": "kubernetes.kubeconfig",
    "PDS_NAMESPACE": "namespace",
    "PDS_LOG_LEVEL": "log_level",
}
"""The variables that are read, and the key each one sets. PDS_* win over the file."""


def load(
    path: Path | None = None,
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> RouterConfig:
    """The configuration of `path`, with Kubernetes' variables beneath, PDS_* and then flags on top.

    Raises:
        ConfigError: the file cannot be read, a key is unknown, or a value is out of range.
    """
    variables = os.environ if environ is None else environ
    tree = read_tree(path) if path else {}
    for name, key in ENVIRONMENT.items():
        if variables.get(name):
            _put(tree, key, variables[name], over=name.startswith("PDS_"))
    for key, value in (flags or {}).items():
        if value is not None:
            _put(tree, key, value, over=True)
    return parse(RouterConfig, tree)


def _put(tree: dict[str, Any], key: str, value: Any, *, over: bool) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    if over:
        tree[last] = value
    else:
        tree.setdefault(last, value)
