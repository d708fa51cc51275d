"""Which folders of this machine go into pods, and the values that the chart gets."""

from pathlib import Path

import pytest
import yaml
from pds_cluster import local_values
from pds_cluster.errors import ClusterError
from pds_cluster.local_values import (
    TREE,
    Mount,
    check_readable,
    interpreter_folders,
    mounts,
    values,
)


@pytest.fixture
def machine(tmp_path):
    """A root with merged /usr, a tree with its environment inside, a Python elsewhere."""
    root = tmp_path / "root"
    for folder in ("usr/bin", "etc/alternatives", "etc/ssl"):
        (root / folder).mkdir(parents=True)
    (root / "etc" / "ld.so.cache").touch()
    (root / "bin").symlink_to("usr/bin")
    (root / "lib64").mkdir()
    base = tmp_path / "home" / "python-3.11"
    (base / "bin").mkdir(parents=True)
    (base / "bin" / "python3.11").touch()
    tree = tmp_path / "tree"
    venv = tree / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(base / "bin" / "python3.11")
    (tree / "examples" / "models").mkdir(parents=True)
    return root, tree, venv, base


def test_mounts(machine):
    root, tree, venv, base = machine
    found = [(mount.name, mount.source, mount.target) for mount in mounts(tree, venv, base, root)]
    assert found == [
        ("host-usr", root / "usr", "/usr"),
        # not /bin: it is a link on this machine, and so it is in the image
        ("host-lib64", root / "lib64", "/lib64"),
        ("host-etc-ld-so-cache", root / "etc/ld.so.cache", "/etc/ld.so.cache"),
        ("host-etc-alternatives", root / "etc/alternatives", "/etc/alternatives"),
        ("host-etc-ssl", root / "etc/ssl", "/etc/ssl"),
        ("tree-0", tree, str(tree)),  # and with it the environment inside
        ("tree-1", base, str(base)),
        ("models", tree / "examples/models", "/models"),
    ]


def test_links_on_the_way_to_the_interpreter_are_mounted_too(machine):
    """As uv makes them: .venv/bin/python → python-3.11-linux/bin/python → python-3.11.7/bin/…"""
    _, _, venv, base = machine
    minor = base.with_name("python-3.11-linux")
    (minor / "bin").mkdir(parents=True)
    (minor / "bin" / "python").symlink_to(base / "bin" / "python3.11")
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to(minor / "bin" / "python")
    assert interpreter_folders(venv, base) == [base, minor]


def test_the_systems_python_needs_no_mount_of_its_own(machine):
    root, tree, venv, _ = machine
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/usr/bin/python3")
    found = mounts(tree, venv, Path("/usr"), root)
    assert [mount.source for mount in found if mount.name.startswith("tree-")] == [tree]


def test_an_unreadable_file_is_refused_by_name(machine):
    root, tree, venv, base = machine
    secret = tree / "secret.py"
    secret.touch(mode=0o600)
    with pytest.raises(ClusterError, match=r"uid 65532 .*\n  .*secret\.py\n  .*chmod -R o\+rX"):
        check_readable(mounts(tree, venv, base, root))


def test_a_closed_folder_is_named_once(machine):
    _, tree, *_ = machine
    closed = tree / "closed"
    closed.mkdir(mode=0o700)
    (closed / "inside.py").touch(mode=0o600)
    assert list(local_values.unreadable(tree)) == [closed]


def test_a_closed_folder_above_does_not_matter(machine):
    """A Python under a 0700 home works: a pod sees the mount, not the way to it."""
    root, tree, venv, base = machine
    base.parent.chmod(0o700)
    check_readable(mounts(tree, venv, base, root))


def test_what_pods_do_not_read_may_be_closed(machine):
    _, tree, *_ = machine
    (tree / ".git").mkdir(mode=0o700)
    assert list(local_values.unreadable(tree)) == []


def test_values_are_the_seam_with_the_chart():
    found = [Mount("host-usr", Path("/usr"), "/usr"), Mount("tree-0", Path("/tree"), "/tree")]
    made = values(TREE, Path("/tree/.venv"), found)
    assert made["image"] == {
        "repository": "localhost/pds-dev",
        "tag": "latest",
        "pullPolicy": "Never",
    }
    operator, pods = made["operator"], made["podDefaults"]
    assert operator["command"] == ["/tree/.venv/bin/pds-operator"]
    assert pods["commandPrefix"] == "/tree/.venv/bin"
    assert pods["allowHostPath"] is True
    assert pods["volumeMounts"][1] == {"name": "tree-0", "mountPath": "/tree", "readOnly": True}
    assert pods["volumes"][0]["hostPath"] == {"path": "/usr", "type": "Directory"}
    assert pods["env"][0] == {
        "name": "PATH",
        "value": "/tree/.venv/bin:/usr/local/bin:/usr/bin:/bin",
    }
    assert all(mount["readOnly"] for mount in pods["volumeMounts"])
    assert yaml.safe_load(yaml.safe_dump(made)) == made


def test_pods_of_another_release_run_its_packages_in_this_environment():
    made = values(Path("/tree/old"), Path("/tree/.venv"), [])
    for pods in (made["operator"], made["podDefaults"]):
        env = {item["name"]: item["value"] for item in pods["env"]}
        assert env["PYTHONPATH"] == "/tree/old/operator:/tree/old/engine:/tree/old/kernels"
    here = values(TREE, Path("/tree/.venv"), [])["podDefaults"]["env"]
    assert "PYTHONPATH" not in {item["name"] for item in here}
