"""Container images written by hand: there is no registry here, and nothing to build.

An image is a tar of a manifest, a configuration and one layer. `pds-dev` is almost empty: accounts,
a /tmp and the host's links; everything else is mounted into it (see local_values.py).
"""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pds_cluster.settings import DEV_IMAGE, DNS_IMAGE, PAUSE_IMAGE, UID, Settings
from pds_cluster.shell import run

PASSWD = f"root:x:0:0:root:/root:/bin/sh\npds:x:{UID}:{UID}:pds:/tmp:/bin/sh\n"
GROUP = f"root:x:0:\npds:x:{UID}:\n"
NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\n"
# Links at the root of a merged-/usr system; the image mirrors the host's, so that /usr fits.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True)
class Image:
    """What the one layer holds; `files` are (mode, bytes), `links` path → target."""

    name: str
    files: Mapping[str, tuple[int, bytes]] = field(default_factory=dict)
    folders: Mapping[str, int] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()


def accounts() -> dict[str, tuple[int, bytes]]:
    texts = {"etc/passwd": PASSWD, "etc/group": GROUP, "etc/nsswitch.conf": NSSWITCH}
    return {path: (0o644, text.encode()) for path, text in texts.items()}


def images(settings: Settings) -> list[Image]:
    bin_dir = settings.bin
    links = {
        name: Path("/", name).readlink() for name in ROOT_LINKS if Path("/", name).is_symlink()
    }
    return [
        Image(
            PAUSE_IMAGE,
            files={"pause": (0o755, (bin_dir / "pause").read_bytes())},
            entrypoint=("/pause",),
        ),
        Image(
            DNS_IMAGE,
            files={**accounts(), "coredns": (0o755, (bin_dir / "coredns").read_bytes())},
            entrypoint=("/coredns",),
        ),
        Image(
            DEV_IMAGE,
            files=accounts(),
            folders={"tmp": 0o1777, "var/tmp": 0o1777, "run": 0o755, "usr": 0o755},
            links={name: str(target) for name, target in links.items()},
        ),
    ]


def archive(image: Image) -> bytes:
    """The image as `ctr images import` reads it; the same bytes for the same content."""
    layer = _layer(image)
    config: dict[str, object] = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": f"{UID}:{UID}",
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Entrypoint": list(image.entrypoint) or None,
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [image.name], "Layers": ["layer.tar"]}]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        _add(tar, "config.json", 0o644, json.dumps(config).encode())
        _add(tar, "layer.tar", 0o644, layer)
        _add(tar, "manifest.json", 0o644, json.dumps(manifest).encode())
    return out.getvalue()


def _layer(image: Image) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, mode in sorted(image.folders.items()):
            info = tarfile.TarInfo(path)
            info.type, info.mode = tarfile.DIRTYPE, mode
            tar.addfile(info)
        for path, target in sorted(image.links.items()):
            info = tarfile.TarInfo(path)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
        for path, (mode, content) in sorted(image.files.items()):
            _add(tar, path, mode, content)
    return out.getvalue()


def _add(tar: tarfile.TarFile, path: str, mode: int, content: bytes) -> None:
    info = tarfile.TarInfo(path)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))


def ensure(settings: Settings) -> None:
    """Imports the images that containerd does not have yet, or has with another content."""
    stamp = settings.run / "images.json"
    had = json.loads(stamp.read_text()) if stamp.exists() else {}
    sources = (settings.bin.resolve(), *(Path("/", name).resolve() for name in ROOT_LINKS))
    key = hashlib.sha256(repr((sources, Path(__file__).read_bytes())).encode()).hexdigest()
    if had.get("key") == key:
        return
    for image in images(settings):
        path = settings.run / "image.tar"
        path.write_bytes(archive(image))
        socket = settings.containerd_socket
        run("ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", path)
        path.unlink()
    stamp.write_text(json.dumps({"key": key}))


def tag(settings: Settings, name: str, also: str) -> None:
    """Give an image that containerd has another name, as a new tag of it would."""
    socket = settings.containerd_socket
    words = ("--address", socket, "--namespace", "k8s.io", "images", "tag", "--force")
    run("ctr", *words, name, also)
