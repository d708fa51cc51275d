"""Decisions of the cluster's parts that need no cluster."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from pds_cluster import addons, build, cgroups, image, mounts, node, packages, processes, volumes
from pds_cluster.errors import ClusterError
from pds_cluster.settings import load


def test_name_servers_out_of_a_pods_sight_are_left_out():
    host = "search x\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\noptions edns0\n"
    assert node.resolv_conf(host) == "nameserver 10.0.0.2\n"


@pytest.mark.parametrize("upstream", [True, False])
def test_dns_forwards_only_where_there_is_somebody_to_ask(upstream):
    assert ("forward ." in addons.corefile(upstream)) is upstream


def test_only_our_released_volumes_are_spent():
    listed = [
        {"metadata": {"name": "pds-00"}, "status": {"phase": "Released"}},
        {"metadata": {"name": "pds-01"}, "status": {"phase": "Bound"}},
        {"metadata": {"name": "pds-02"}, "status": {"phase": "Available"}},
        {"metadata": {"name": "pds-03"}, "status": {"phase": "Failed"}},
        {"metadata": {"name": "somebody-elses"}, "status": {"phase": "Released"}},
        {"metadata": {"name": "pds-04"}, "status": {}},
    ]
    assert volumes.spent(listed) == ["pds-00", "pds-03"]


def test_the_build_key_changes_with_what_is_built(monkeypatch):
    before = build.key()
    assert build.key() == before
    monkeypatch.setitem(build.OTHERS, "helm", "helm.sh/helm/v3/cmd/helm@v3.0.0")
    assert build.key() != before


def test_a_build_without_go_says_how_to_get_one(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    settings = load({"XDG_CACHE_HOME": str(tmp_path)})
    with pytest.raises(ClusterError, match=r"Go is not installed.*\n.*go\.dev"):
        build.ensure(settings)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages, "PROGRAMS", {"no-such-program": "some-package"})
    assert packages.missing() == ["some-package"]


def test_without_root_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match=r"needs root.*\n.*PDS_CONTEXT"):
        packages.ensure()


def test_an_image_is_what_containerd_reads():
    made = image.Image(
        "localhost/x:1",
        files=image.accounts(),
        folders={"tmp": 0o1777},
        links={"bin": "usr/bin"},
        entrypoint=("/x",),
    )
    with tarfile.open(fileobj=io.BytesIO(image.archive(made))) as outer:
        (manifest,) = json.load(outer.extractfile("manifest.json"))
        config = json.load(outer.extractfile(manifest["Config"]))
        layer = outer.extractfile(manifest["Layers"][0]).read()
    assert manifest["RepoTags"] == ["localhost/x:1"]
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Entrypoint"] == ["/x"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as inner:
        assert b"pds:x:65532:65532:pds:/tmp" in inner.extractfile("etc/passwd").read()
        assert inner.getmember("tmp").mode == 0o1777
        assert inner.getmember("bin").linkname == "usr/bin"
    assert image.archive(made) == image.archive(made)


@pytest.fixture
def settings(tmp_path):
    return load({"PDS_CLUSTER_DIR": str(tmp_path / "run")})


@pytest.fixture
def sleeper():
    """A process that ignores a polite request to end."""
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True)"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{script}; time.sleep(600)"], stdout=subprocess.PIPE
    )
    assert child.stdout.readline() == b"1\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def note(settings, pid: int, started: str) -> None:
    path = processes.pid_file(settings, "x")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": pid, "started": started, "digest": "d"}))


def test_a_number_that_now_is_somebody_elses_is_never_signalled(settings, sleeper):
    note(settings, sleeper.pid, started="1")
    assert processes.running(settings, "x") is None
    processes.stop(settings, "x")
    assert sleeper.poll() is None


def test_stop_ends_a_process_that_does_not_listen(settings, sleeper):
    note(settings, sleeper.pid, processes.start_time(sleeper.pid))
    assert processes.running(settings, "x") == (sleeper.pid, "d")
    processes.stop(settings, "x", grace=0.1)
    assert processes.start_time(sleeper.pid) is None
    assert processes.running(settings, "x") is None


def test_a_zombie_does_not_run(sleeper):
    sleeper.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped
    assert processes.start_time(sleeper.pid) is None


def test_a_broken_pid_file_is_no_process(settings):
    path = processes.pid_file(settings, "x")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert processes.running(settings, "x") is None


def test_a_program_restarts_when_a_file_it_reads_changes(tmp_path):
    config = tmp_path / "config"
    config.write_text("a")
    program = processes.Program("x", ("x", config), ready=lambda: True, reads=(config,))
    before = program.digest()
    config.write_text("b")
    assert program.digest() != before


def test_mounts_below_a_folder_come_innermost_first():
    found = mounts.below(Path("/sys"))
    assert found[-1] == "/sys"
    assert mounts.is_mounted(Path("/proc"))
    assert not mounts.is_mounted(Path("/proc/self"))


@pytest.mark.parametrize(
    ("there", "file", "each"),
    [
        ("cgroup.controllers", "pds-x/cpu.weight", 100),
        ("cpu/cgroup.procs", "cpu/pds-x/cpu.shares", 1024),
    ],
    ids=["v2", "v1"],
)
def test_pods_weigh_as_much_as_the_cores_they_share(tmp_path, monkeypatch, there, file, each):
    for path in (tmp_path / there, tmp_path / file):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    cgroups.ensure(load({"PDS_CLUSTER_NAME": "x"}))
    assert int((tmp_path / file).read_text()) == each * (os.cpu_count() or 1)
