"""Every name, address, port and folder of a local cluster, in one place.

An instance lives in a network namespace of its own, so ports are the usual ones and two instances
can only collide in what the host sees: name, run folder and address block, all set here.

    PDS_CLUSTER_NAME    name of the instance                          (local)
    PDS_CLUSTER_BLOCK   0..15, chooses the address ranges             (0)
    PDS_CLUSTER_DIR     run folder           (/var/lib/pdserving/<name>)
    PDS_CONTEXT         context of a cluster of your own, used in place of a local one
"""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pds_cluster.errors import ClusterError

KUBERNETES = "v1.34.4"
HELM = "v3.19.0"
COREDNS = "v1.12.4"
KWOK = "v0.7.0"

UID = 65532  # whom pods run as; the images and the operator's pods agree on it
DEV_IMAGE = "localhost/pds-dev:latest"
DNS_IMAGE = f"localhost/pds-coredns:{COREDNS}"
PAUSE_IMAGE = "localhost/pds-pause:latest"

DEFAULT_PARENT = Path("/var/lib/pdserving")
STORAGE_CLASS = "pds-local"
VOLUMES = 16
VOLUME_SIZE = "100Gi"

CLUSTER_DIR = Path(__file__).resolve().parents[1]
TREE = CLUSTER_DIR.parent


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One instance. `context` is set when a cluster of the user's own stands in for it."""

    name: str
    block: int
    run: Path
    cache: Path
    context: str | None = None

    @property
    def id(self) -> str:
        """Name of the node, the kubeconfig context, the host's link, the cgroup and the CNI net."""
        return f"pds-{self.name}"

    @property
    def host_ip(self) -> str:
        return f"10.243.{self.block}.1"

    @property
    def node_ip(self) -> str:
        return f"10.243.{self.block}.2"

    @property
    def pod_cidr(self) -> str:
        return f"10.244.{self.block}.0/24"

    @property
    def service_cidr(self) -> str:
        return f"10.{96 + self.block}.0.0/16"

    @property
    def api_service_ip(self) -> str:
        return f"10.{96 + self.block}.0.1"

    @property
    def dns_ip(self) -> str:
        return f"10.{96 + self.block}.0.10"

    @property
    def api_url(self) -> str:
        return f"https://{self.node_ip}:6443"

    @property
    def netns(self) -> Path:
        return self.run / "netns" / "node"

    @property
    def pki(self) -> Path:
        return self.run / "pki"

    @property
    def etc(self) -> Path:
        """Configuration that we generate."""
        return self.run / "etc"

    @property
    def bin(self) -> Path:
        """A link to the cached programs, so that the path users type is short and stable."""
        return self.run / "bin"

    @property
    def kubeconfig(self) -> Path:
        return self.run / "kubeconfig"

    @property
    def containerd_socket(self) -> Path:
        return self.run / "containerd.sock"

    @property
    def volumes(self) -> Path:
        return self.run / "volumes"

    @property
    def lock(self) -> Path:
        """Held by `up`, `down` and `wipe-volumes`; beside the run folder, which `down` deletes."""
        return self.run.with_name(self.run.name + ".lock")


def load(env: Mapping[str, str] = os.environ) -> Settings:
    """The settings that `env` asks for. Raises ClusterError naming the variable that is wrong."""
    name = env.get("PDS_CLUSTER_NAME", "local")
    if not re.fullmatch(r"[a-z0-9]{1,10}", name):
        raise ClusterError(
            f"PDS_CLUSTER_NAME={name!r} cannot be used",
            "1 to 10 lower-case letters and digits (it becomes the name of a network link).",
        )
    block = env.get("PDS_CLUSTER_BLOCK", "0")
    if not (block.isdecimal() and int(block) < 16):
        raise ClusterError(f"PDS_CLUSTER_BLOCK={block!r} is not a number from 0 to 15")
    run = Path(env.get("PDS_CLUSTER_DIR") or DEFAULT_PARENT / name)
    if not run.is_absolute() or len(run.parts) < 3:
        raise ClusterError(
            f"PDS_CLUSTER_DIR={str(run)!r} cannot be used",
            "An absolute path of a folder of its own: `down` deletes it.",
        )
    home = Path(env.get("HOME", "/root"))
    cache = Path(env.get("XDG_CACHE_HOME") or home / ".cache") / "pdserving"
    return Settings(
        name=name, block=int(block), run=run, cache=cache, context=env.get("PDS_CONTEXT") or None
    )


def say(text: str) -> None:
    """A line of progress. On stderr: stdout carries only what a command was asked to print."""
    print(text, file=sys.stderr, flush=True)
