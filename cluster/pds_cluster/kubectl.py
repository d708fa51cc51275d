"""kubectl and the API, as the administrator of the instance."""

import json
from typing import Any

from pds_cluster import probe
from pds_cluster.settings import Settings
from pds_cluster.shell import run


def kubectl(settings: Settings, *words: str, stdin: str | None = None) -> str:
    """What kubectl prints. Raises ClusterError with its complaint."""
    program, config = settings.bin / "kubectl", f"--kubeconfig={settings.kubeconfig}"
    return run(program, config, *words, stdin=stdin).stdout


def get(settings: Settings, path: str) -> Any:
    """The object at `path` of the API, None when it is not there or the API does not answer."""
    body = probe.get(settings, settings.api_url + path)
    return None if body is None else json.loads(body)


def apply(settings: Settings, objects: list[dict[str, Any]]) -> None:
    """Server-side, so that a second time changes nothing."""
    content = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
    words = ("apply", "--server-side", "--force-conflicts", "-f", "-")
    kubectl(settings, *words, stdin=content)


def condition(thing: Any, kind: str) -> bool:
    """Whether the condition `kind` of an object is True; False when there is no object."""
    found = ((thing or {}).get("status") or {}).get("conditions") or []
    return any(c["type"] == kind and c["status"] == "True" for c in found)
