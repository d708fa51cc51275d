"""Values for the chart that make pods run this working tree, with no image to build.

The pods' image is almost empty. What runs in it is mounted read-only from this machine, at the
paths it has here, because a virtual environment's scripts and links hold absolute paths.
"""

import compileall
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pds_cluster.errors import ClusterError
from pds_cluster.image import ROOT_LINKS
from pds_cluster.settings import DEV_IMAGE, TREE, UID, Settings
from pds_cluster.shell import write

SYSTEM = ("usr", *ROOT_LINKS, "etc/ld.so.cache", "etc/alternatives", "etc/ssl")
MODELS = "/models"  # where examples/*.yaml look for the models of examples/models
PACKAGES = ("operator", "engine", "kernels")
NOT_READ = {".git", ".cache", ".run", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}


@dataclass(frozen=True)
class Mount:
    """`source` on this machine appears as `target` in a pod."""

    name: str
    source: Path
    target: str

    def volume(self) -> dict[str, Any]:
        kind = "Directory" if self.source.is_dir() else "File"
        return {"name": self.name, "hostPath": {"path": str(self.source), "type": kind}}

    def volume_mount(self) -> dict[str, Any]:
        return {"name": self.name, "mountPath": self.target, "readOnly": True}


def interpreter_folders(venv: Path, base: Path) -> list[Path]:
    """Where the interpreter of `venv` lives: `base`, and whatever its links pass through."""
    folders = [base]
    link = venv / "bin" / "python"
    while link.is_symlink():
        link = link.parent / link.readlink()
        prefix = link.parent.parent
        if not any(prefix.is_relative_to(folder) for folder in (venv, *folders)):
            folders.append(prefix)
    return folders


def mounts(tree: Path, venv: Path, base: Path, root: Path = Path("/")) -> list[Mount]:
    """What a pod needs of this machine; nothing twice, links of the root left to the image."""
    found = []
    for name in SYSTEM:
        path = root / name
        if path.exists() and not (path.is_symlink() and name in ROOT_LINKS):
            found.append(
                Mount(f"host-{name.replace('/', '-').replace('.', '-')}", path, f"/{name}")
            )
    ours: list[Path] = []
    for path in (tree, venv, *interpreter_folders(venv, base)):
        if not any(path.is_relative_to(other) for other in (Path("/usr"), *ours)):
            ours.append(path)
    found += [Mount(f"tree-{number}", path, str(path)) for number, path in enumerate(ours)]
    if (tree / "examples" / "models").is_dir():
        found.append(Mount("models", tree / "examples" / "models", MODELS))
    return found


def unreadable(folder: Path) -> Iterator[Path]:
    """What a stranger to this machine (uid 65532) cannot read below `folder`.

    The folders above do not matter: a pod sees the mount, not the way to it."""
    for path, names, files in os.walk(folder):
        names[:] = [name for name in names if name not in NOT_READ]
        if not _open_to_all(Path(path), stat.S_IROTH | stat.S_IXOTH):
            yield Path(path)
            names.clear()
            continue
        for name in files:
            if not _open_to_all(Path(path, name), stat.S_IROTH):
                yield Path(path, name)


def _open_to_all(path: Path, bits: int) -> bool:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:  # deleted while we walk
        return True
    return stat.S_ISLNK(mode) or mode & bits == bits


def check_readable(found: list[Mount]) -> None:
    """Raises ClusterError that names what pods could not read, and the cure."""
    bad: list[Path] = []
    for mount in found:
        if mount.name.startswith("host-") or not mount.source.is_dir():
            continue
        for path in unreadable(mount.source):
            bad.append(path)
            if len(bad) == 5:
                break
    if bad:
        listed = "\n  ".join(str(path) for path in bad[:5])
        raise ClusterError(
            f"pods run as uid {UID} and could not read what is mounted into them:\n  {listed}",
            "Make it readable for all: `chmod -R o+rX` on the folder.",
        )


def values(release: Path, venv: Path, found: list[Mount]) -> dict[str, Any]:
    """The seam with the chart: `operator` is its pod, `podDefaults` go into every pod it makes.

    release: a checkout whose packages pods are to run, in the environment of this one.
    """
    repository, _, tag = DEV_IMAGE.rpartition(":")
    env = {
        "PATH": f"{venv}/bin:/usr/local/bin:/usr/bin:/bin",
        "HOME": "/tmp",
        "USER": "pds",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/torchinductor",
        "TRITON_CACHE_DIR": "/tmp/triton",
    }
    if release != TREE:
        env["PYTHONPATH"] = ":".join(str(release / package) for package in PACKAGES)
    shared = {
        "volumes": [mount.volume() for mount in found],
        "volumeMounts": [mount.volume_mount() for mount in found],
        "env": [{"name": name, "value": value} for name, value in env.items()],
    }
    return {
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        "operator": {**shared, "command": [f"{venv}/bin/pds-operator"]},
        "podDefaults": {**shared, "commandPrefix": f"{venv}/bin", "allowHostPath": True},
    }


def write_local_values(settings: Settings, release: Path = TREE) -> Path:
    """Writes <run>/values-local.yaml. Raises ClusterError when pods could not read a file of it.

    release: this tree, or a checkout of another version below it (pods mount the tree).
    """
    if sys.prefix == sys.base_prefix:
        raise ClusterError(
            "local values must be written by the virtual environment that pods are to run",
            "Use .venv/bin/python -m pds_cluster local-values",
        )
    venv = Path(sys.prefix)
    found = mounts(TREE, venv, Path(sys.base_prefix))
    # Pods mount the tree read-only: each process of theirs would compile its modules for itself.
    for package in PACKAGES:
        compileall.compile_dir(release / package, quiet=1)
    check_readable(found)
    path = settings.run / "values-local.yaml"
    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    write(path, yaml.dump(values(release, venv, found), Dumper=dumper, sort_keys=False))
    return path
