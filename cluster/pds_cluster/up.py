"""Bringing the cluster up: each step makes sure of one thing and leaves alone what is right."""

from pds_cluster import (
    addons,
    build,
    certs,
    control_plane,
    image,
    kubectl,
    network,
    node,
    packages,
    processes,
    volumes,
)
from pds_cluster.settings import Settings, say
from pds_cluster.shell import locked, wait_for


def up(settings: Settings) -> None:
    """Returns when the node is Ready and DNS answers. Quick when that is so already."""
    packages.ensure()
    programs = build.ensure(settings)
    with locked(settings.lock):
        settings.run.mkdir(parents=True, exist_ok=True)
        _link(settings, programs)
        network.ensure(settings)
        certs.ensure(settings)
        control_plane.write_files(settings)
        node.write_files(settings)
        _start(settings)
        addons.ensure(settings)
        volumes.ensure(settings)
        _wait_node(settings)
        addons.wait_ready(settings)


def _link(settings: Settings, programs: object) -> None:
    link = settings.bin
    if not (link.is_symlink() and str(link.readlink()) == str(programs)):
        link.unlink(missing_ok=True)
        link.symlink_to(str(programs))


def _start(settings: Settings) -> None:
    """etcd, then what asks it, then what asks that; what can start together does."""
    etcd, apiserver = control_plane.etcd(settings), control_plane.apiserver(settings)
    containerd = node.containerd(settings)
    rest = [
        control_plane.controller_manager(settings),
        control_plane.scheduler(settings),
        node.kube_proxy(settings),
        node.kubelet(settings),
    ]
    for wave in ([etcd, containerd], [apiserver], rest):
        for program in wave:
            if processes.ensure(settings, program):
                say(f"starting {program.name}")
        processes.wait_ready(settings, wave)
        if containerd in wave:
            image.ensure(settings)


def _wait_node(settings: Settings) -> None:
    wait_for(
        f"node {settings.id} Ready",
        lambda: kubectl.condition(kubectl.get(settings, f"/api/v1/nodes/{settings.id}"), "Ready"),
        timeout=90,
        hint=processes.tail(settings, "kubelet"),
    )
