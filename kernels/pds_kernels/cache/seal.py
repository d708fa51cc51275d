"""meta.json: what made an artefact, its files' digests, and a seal that only key holders can make.

Whoever can write the volume could otherwise run code in every engine that loads from it.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

META = "meta.json"
COMMITTED = ".committed"


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder` but the seal's own, by relative name."""
    return {
        path.relative_to(folder).as_posix(): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (META, COMMITTED)
    }


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(meta: Mapping[str, Any], secret: bytes) -> str:
    """`meta` as the text of meta.json, with its seal."""
    return json.dumps({**meta, "seal": _seal(meta, secret)}, indent=1, sort_keys=True)


def opened(folder: Path, secret: bytes) -> dict[str, Any] | None:
    """The meta of the artefact in `folder`; None when absent, unfinished, changed or forged."""
    try:
        if not (folder / COMMITTED).exists():
            return None
        meta: dict[str, Any] = json.loads((folder / META).read_text())
        seal = str(meta.pop("seal", ""))
        intact = hmac.compare_digest(seal, _seal(meta, secret)) and meta["files"] == digests(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return meta if intact else None


def key_of(folder: Path) -> str:
    """Which secret's holders made the artefact, by its own word; "" where that cannot be read."""
    try:
        return str(json.loads((folder / META).read_text()).get("seal_key", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _seal(meta: Mapping[str, Any], secret: bytes) -> str:
    text = json.dumps(meta, sort_keys=True, separators=(",", ":"))
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
