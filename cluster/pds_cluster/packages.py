"""What the machine itself must have: Debian packages when root, else a message that names them."""

import os
import shutil
import tempfile
from pathlib import Path

from pds_cluster.errors import ClusterError
from pds_cluster.settings import say
from pds_cluster.shell import run

# program → Debian package that brings it
PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "/usr/lib/cni/host-local": "containernetworking-plugins",
    "etcd": "etcd-server",
    "iptables": "iptables",
    "nft": "nftables",
    "ip": "iproute2",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "socat": "socat",
    "mount": "mount",
    "nsenter": "util-linux",
    "openssl": "openssl",
    "gcc": "gcc",
    "/usr/include/stdio.h": "libc6-dev",
}
POLICY = Path("/usr/sbin/policy-rc.d")


def missing() -> list[str]:
    """Debian packages that this machine lacks, sorted."""
    return sorted({package for program, package in PROGRAMS.items() if not _present(program)})


def _present(program: str) -> bool:
    if program.startswith("/"):
        return Path(program).exists()
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return shutil.which(program, path=path) is not None


def ensure() -> None:
    """Installs what is missing. Raises ClusterError that names it where that is not possible."""
    if os.geteuid() != 0:
        raise ClusterError(
            "the local cluster needs root: it runs containerd and a kubelet",
            "Run as root, or set PDS_CONTEXT to a context of a cluster of your own.",
        )
    packages = missing()
    if not packages:
        return
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise ClusterError(f"these programs' packages are missing: {names}", "Install them.")
    say(f"installing {names}")
    env = ("env", "DEBIAN_FRONTEND=noninteractive")
    install = (*env, "apt-get", "install", "-y", "--no-install-recommends", *packages)
    with _NoServices():
        if run(*install, check=False, timeout=600).returncode != 0:
            run(*env, "apt-get", "update", timeout=600)
            run(*install, timeout=600)


class _NoServices:
    """While packages install, no service of theirs starts: we run our own etcd and containerd."""

    def __enter__(self) -> None:
        self._before: Path | None = None
        if POLICY.exists():
            self._before = Path(tempfile.mkdtemp()) / POLICY.name
            shutil.move(POLICY, self._before)
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)

    def __exit__(self, *_: object) -> None:
        POLICY.unlink(missing_ok=True)
        if self._before is not None:
            shutil.move(self._before, POLICY)
            self._before.parent.rmdir()
