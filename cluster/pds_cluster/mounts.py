"""What is mounted under a folder."""

from pathlib import Path

from pds_cluster.shell import run


def below(folder: Path) -> list[str]:
    """Mount points at or below `folder`, the innermost first."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    points = [line.split()[1].encode().decode("unicode_escape") for line in lines]
    return [point for point in reversed(points) if Path(point).is_relative_to(folder)]


def is_mounted(path: Path) -> bool:
    """Also for a file, of which Path.is_mount knows nothing."""
    return str(path) in below(path)


def unmount(folder: Path) -> None:
    for point in below(folder):
        if run("umount", point, check=False).returncode != 0:
            run("umount", "--lazy", point, check=False)
