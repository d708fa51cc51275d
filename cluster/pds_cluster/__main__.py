"""The command line: `python -m pds_cluster up|down|status|…`, with cluster/ on PYTHONPATH."""

import argparse
import sys

from pds_cluster import build, own, status, teardown, up, volumes
from pds_cluster.errors import ClusterError
from pds_cluster.local_values import write_local_values
from pds_cluster.settings import Settings, load, say
from pds_cluster.shell import locked


def _up(settings: Settings) -> None:
    up.up(settings)
    status.show(settings)


def _wipe(settings: Settings) -> None:
    with locked(settings.lock):
        made = volumes.ensure(settings)
    print("\n".join(made) if made else "nothing to wipe")


def _helm(settings: Settings) -> None:
    print(build.ensure(settings, ["helm"]) / "helm")


COMMANDS = {
    "up": ("bring the cluster up, or mend what is not running", _up),
    "down": ("end everything and delete the run folder", teardown.down),
    "status": ("what runs, and how to reach it; exit status 1 when it is not healthy", status.show),
    "helm": ("build helm alone, print its path", _helm),
    "kubeconfig": ("print the path of the kubeconfig", lambda s: print(s.kubeconfig)),
    "wipe-volumes": ("make volumes that claims have left usable again", _wipe),
    "local-values": (
        "write the chart's values that run this working tree, print their path",
        lambda s: print(write_local_values(s)),
    ),
}


def main(arguments: list[str] | None = None) -> int:
    lines = "\n".join(f"  {name:14}{text}" for name, (text, _) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="pds_cluster",
        description=f"A local Kubernetes.\n\ncommands:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="command")
    command = parser.parse_args(arguments).command
    try:
        settings = load()
        if settings.context is not None:
            own.answer(settings.context, command)
        else:
            COMMANDS[command][1](settings)
    except ClusterError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
