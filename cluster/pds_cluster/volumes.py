"""Volumes for claims: folders of the node that several pods may share.

Nobody provisions them on demand, so there is a fixed number, each usable once: Kubernetes never
gives a Released volume to another claim. `ensure` wipes and makes anew those that are Released.
They are `local` volumes, not hostPath, because only to the former the kubelet applies fsGroup.
"""

import shutil
from typing import Any

from pds_cluster import kubectl
from pds_cluster.settings import STORAGE_CLASS, VOLUME_SIZE, VOLUMES, Settings
from pds_cluster.shell import wait_for

PATH = "/api/v1/persistentvolumes"


def names() -> list[str]:
    return [f"pds-{number:02}" for number in range(VOLUMES)]


def spent(volumes: list[dict[str, Any]]) -> list[str]:
    """Names of those of ours that no claim can use any more."""
    return [name for name, phase in _phases(volumes).items() if phase in ("Released", "Failed")]


def _phases(volumes: list[dict[str, Any]]) -> dict[str, str]:
    """Phase of each volume that is one of ours."""
    ours = set(names())
    found = {volume["metadata"]["name"]: volume["status"].get("phase", "") for volume in volumes}
    return {name: phase for name, phase in found.items() if name in ours}


def volume(settings: Settings, name: str) -> dict[str, Any]:
    on_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [settings.id]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": VOLUME_SIZE},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            "local": {"path": str(settings.volumes / name)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}},
        },
    }


def ensure(settings: Settings) -> list[str]:
    """Makes every volume available that is neither bound nor available; returns their names."""
    there = _list(settings)
    wiped = spent(there)
    if wiped:
        kubectl.kubectl(settings, "delete", "persistentvolume", "--wait=true", *wiped)
    known = _phases(there).keys() - set(wiped)
    new = [name for name in names() if name not in known]
    for name in new:
        folder = settings.volumes / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    if new:
        kubectl.apply(settings, [volume(settings, name) for name in new])
        wait_for("new volumes", lambda: _available(settings, set(new)), timeout=30)
    return new


def _list(settings: Settings) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (kubectl.get(settings, PATH) or {}).get("items", [])
    return found


def _available(settings: Settings, wanted: set[str]) -> bool:
    phases = _phases(_list(settings))
    return all(phases.get(name) in ("Available", "Bound") for name in wanted)
