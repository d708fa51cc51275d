"""What the warm-up of a pod did, kept in the pod's own folder: its server shows it (/metrics).

The volume is not asked: it may be slow or gone, and pods of one stage write one manifest.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pds_kernels.cache import own_folder

from pds_engine.config import EngineConfig

_FILE = "warmup.json"


@dataclass(frozen=True, slots=True)
class Account:
    """Of a warm-up that has ended well."""

    stages: str
    """Of the pod's ranks: "0", or "0-1"."""
    artefacts: Mapping[str, int]
    """How many came from where (warming.progress.Source)."""
    seconds: float
    """Wall time."""


def private_folder(config: EngineConfig) -> Path:
    """Where this pod's init container and its engine keep what is theirs alone.

    Raises:
        OSError: there is no place for it.
    """
    return config.cache.private or own_folder("pds-cache")


def leave(folder: Path, account: Account) -> None:
    """Write it down for `account_in`; a warm-up is good without it."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _FILE).write_text(json.dumps(asdict(account)))


def account_in(folder: Path) -> Account | None:
    """What the last warm-up left there; None: there was none."""
    try:
        return Account(**json.loads((folder / _FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
