"""A cluster of the user's own (PDS_CONTEXT): it is looked at and never changed."""

import os
import shutil

from pds_cluster.errors import ClusterError
from pds_cluster.settings import say
from pds_cluster.shell import run


def kubeconfig() -> str:
    """Where kubectl itself would look."""
    return os.environ.get("KUBECONFIG") or os.path.expanduser("~/.kube/config")


def check(context: str) -> None:
    """Raises ClusterError unless the API server of `context` answers."""
    if shutil.which("kubectl") is None:
        raise ClusterError(
            f"PDS_CONTEXT={context} names a cluster of your own, but there is no kubectl",
            "Install kubectl, or unset PDS_CONTEXT for a local cluster.",
        )
    asked = run("kubectl", "--context", context, "get", "--raw", "/readyz", check=False)
    if asked.returncode != 0:
        raise ClusterError(
            f"the cluster of PDS_CONTEXT={context} does not answer: {asked.stderr.strip()}",
            f"Look at `kubectl config get-contexts` (kubeconfig {kubeconfig()}), or unset it.",
        )


def answer(context: str, command: str) -> None:
    """What `command` means for such a cluster."""
    if command == "local-values":
        raise ClusterError(
            "local values mount this machine's folders: they are of no use on your own cluster",
            "Unset PDS_CONTEXT, or install the chart with images that your cluster can pull.",
        )
    check(context)
    if command in ("down", "wipe-volumes"):
        say(f"{command}: nothing done, context {context} is a cluster of your own")
    elif command == "kubeconfig":
        print(kubeconfig())
    else:
        print(f"context     {context}\nkubeconfig  {kubeconfig()}")
