"""The node's network: a namespace of its own, joined to the host by one link.

Everything that Kubernetes does to a network (nftables rules, pod links, forwarding) happens inside
the namespace and ends with it. The host gets one link, two routes (pods and Services, so that both
can be reached from here) and one nftables table (so that pods can reach the world).
"""

import json
from pathlib import Path

from pds_cluster.mounts import is_mounted
from pds_cluster.settings import Settings
from pds_cluster.shell import Arg, run, write

FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


def inside(settings: Settings, *argv: Arg) -> tuple[Arg, ...]:
    """`argv`, to be run in the node's network namespace (mounts and processes stay the host's)."""
    return ("nsenter", f"--net={settings.netns}", "--", *argv)


def _link_up(settings: Settings) -> bool:
    shown = run("ip", "-j", "link", "show", "dev", settings.id, check=False)
    return shown.returncode == 0 and "LOWER_UP" in json.loads(shown.stdout)[0]["flags"]


def ensure(settings: Settings) -> None:
    """Makes the namespace, the link, routes and the table. What is right already is left alone."""
    if not is_mounted(settings.netns):
        _delete_link(settings)
        settings.netns.parent.mkdir(parents=True, exist_ok=True)
        settings.netns.touch()
        run("unshare", f"--net={settings.netns}", "true")
    if not _link_up(settings):
        _delete_link(settings)
        _make_link(settings)
    for cidr in (settings.pod_cidr, settings.service_cidr):
        run("ip", "route", "replace", cidr, "via", settings.node_ip, "dev", settings.id)
    _allow_forwarding(settings)
    run("nft", "-f", "-", stdin=_table(settings))


def _make_link(settings: Settings) -> None:
    ns, link = settings.netns, settings.id
    run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", ns)
    run("ip", "addr", "add", f"{settings.host_ip}/30", "dev", link)
    run("ip", "link", "set", link, "up")
    for words in (
        ("link", "set", "lo", "up"),
        ("addr", "add", f"{settings.node_ip}/30", "dev", "eth0"),
        ("link", "set", "eth0", "up"),
        ("route", "add", "default", "via", settings.host_ip),
    ):
        run(*inside(settings, "ip", *words))
    run(*inside(settings, "sh", "-c", f"echo 1 > {FORWARDING}"))


def _allow_forwarding(settings: Settings) -> None:
    before = FORWARDING.read_text().strip()
    if before == "1":
        return
    write(settings.run / "before" / "ip_forward", before)
    FORWARDING.write_text("1")


def _table(settings: Settings) -> str:
    """Masquerades what pods send to the world; `add` + `delete` first, so that it is replaced."""
    name = f"ip {settings.id}"
    ours = f"{{ 10.243.{settings.block}.0/30, {settings.pod_cidr} }}"
    return f"""
        add table {name}
        delete table {name}
        table {name} {{
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                ip saddr {ours} oifname != "{settings.id}" masquerade
            }}
        }}
    """


def _delete_link(settings: Settings) -> None:
    run("ip", "link", "del", settings.id, check=False)


def remove(settings: Settings) -> None:
    """Removes the host's side (routes go with the link); the namespace is a mount like others."""
    _delete_link(settings)
    run("nft", "delete", "table", "ip", settings.id, check=False)
    before = settings.run / "before" / "ip_forward"
    if before.exists():
        FORWARDING.write_text(before.read_text())
