"""The proof of warmth: what a stage needs, and what was found or built for it."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from pds_kernels.cache.files import FileFault, Files

_DOTS = {".": "%2E", "..": "%2E%2E"}
"""Names that are folders of their own accord."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One stage's artefacts. `digest` depends only on what is needed, not on who built it."""

    artefacts: Mapping[str, str]
    """Cache key by shape name."""
    compiled: int
    reused: int
    seconds: float
    """Wall time of the warm-up."""
    producer: str

    @property
    def digest(self) -> str:
        return manifest_digest(self.artefacts)


def manifest_digest(artefacts: Mapping[str, str]) -> str:
    """Names the set of artefacts, whoever built them: 16 hexadecimal digits."""
    text = json.dumps(dict(artefacts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def manifest_path(root: Path, model: str, revision: str, role: str, stage: str) -> Path:
    """Where the manifest of a stage lies on the volume. `stage` may say for what it was compiled:
    1.sm_90."""
    named = _DOTS.get(model) or quote(model, safe="")  # it may hold a slash
    return root / "v1" / "manifests" / named / (revision or "none") / role / f"{stage}.json"


def progress_path(manifest: Path) -> Path:
    """Where a warm-up says how far it is, beside the manifest that it is going to write."""
    return manifest.with_name(f"{manifest.stem}.progress.json")


def write_manifest(files: Files, path: Path, manifest: Manifest) -> None:
    """Replace the manifest at once: a reader sees the old one or the new one.

    Raises:
        FileFault: it cannot be written; nothing half written is left.
    """
    replace_file(files, path, json.dumps(asdict(manifest), indent=1, sort_keys=True).encode())


def replace_file(files: Files, path: Path, content: bytes) -> None:
    """Make `path` hold `content`, by one rename. Raises FileFault as `write_manifest`."""
    files.make_folder(path.parent)
    scratch = path.with_name(f".{uuid.uuid4().hex}")
    try:
        files.write(scratch, [content])
        files.rename(scratch, path)
    except FileFault:
        with suppress(FileFault):
            files.remove(scratch)
        raise


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`, or None where there is none that can be read."""
    try:
        return Manifest(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
