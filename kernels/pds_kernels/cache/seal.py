"""meta.json: what made an artefact, its files' digests, and a seal that only key holders can make.

Whoever can write the volume could otherwise run code in every engine that loads from it.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

META = "meta.json"
COMMITTED = ".committed"
MARKS = frozenset({META, COMMITTED})
"""Files that are the seal's own."""


def cache_key(inputs: Mapping[str, Any], seal_key: str) -> str:
    """The digest of everything that decides an artefact, as 64 hexadecimal digits. `seal_key` names
    the secret of its makers."""
    text = json.dumps({**inputs, "seal": seal_key}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the seal's own, by relative name."""
    return {
        path.relative_to(folder).as_posix(): _file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in MARKS
    }


def sealed(meta: Mapping[str, Any], secret: bytes) -> bytes:
    """`meta` as the content of meta.json, with its seal."""
    content = {**meta, "seal": _seal(meta, secret)}
    return json.dumps(content, indent=1, sort_keys=True).encode()


def opened(content: bytes, secret: bytes, key: str) -> dict[str, Any] | None:
    """The meta of the artefact `key` that `content` holds; None where it cannot be read, was sealed
    by another secret, or is that of another artefact."""
    try:
        meta: dict[str, Any] = json.loads(content)
        seal = str(meta.pop("seal", ""))
        files = meta["files"]
        if not hmac.compare_digest(seal, _seal(meta, secret)):
            return None
        # Without a secret anybody can seal.
        lawful = inside(files) and cache_key(meta["inputs"], meta["seal_key"]) == key
        float(meta["seconds"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return meta if lawful else None


def inside(files: Mapping[str, Any]) -> bool:
    """Whether `files` are digests by names of files that a folder may have beside the seal's."""
    folders = {parent for name in files for parent in PurePosixPath(name).parents}
    return all(
        _inside(name) and PurePosixPath(name) not in folders and isinstance(digest, str)
        for name, digest in files.items()
    )


def key_of(content: bytes) -> str:
    """Which secret's holders made the artefact, by its own word; "" where that cannot be read."""
    try:
        return str(json.loads(content).get("seal_key", ""))
    except (ValueError, AttributeError):
        return ""


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    lawful = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return lawful and path.as_posix() == name and path.name not in MARKS and "\0" not in name


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(meta: Mapping[str, Any], secret: bytes) -> str:
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
