"""API keys from a mounted Secret; a changed Secret takes effect within seconds."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from time import monotonic

from pds_engine.errors import ConfigError, Unauthorized

REREAD_SECONDS = 5.0


class ApiKeys:
    """Every line of every file of the folder is a key. Only digests are kept and compared."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digests = self._read()
        self._read_at = monotonic()
        if not self._digests:
            raise ConfigError(f"auth.secret_dir {folder} holds no key")

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """
        Raises:
            Unauthorized: `Authorization: Bearer <key>` is missing or names no key of ours.
        """
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or _digest(key.strip()) not in self._current():
            raise Unauthorized(
                "no API key, or a wrong one", hint="send Authorization: Bearer <key>"
            )

    def _current(self) -> frozenset[bytes]:
        if monotonic() - self._read_at > REREAD_SECONDS:
            self._read_at = monotonic()
            self._digests = self._read() or self._digests
        return self._digests

    def _read(self) -> frozenset[bytes]:
        try:
            files = [p for p in self._folder.iterdir() if not p.name.startswith(".")]
            lines = [line for p in files if p.is_file() for line in p.read_bytes().splitlines()]
        except OSError as error:
            raise ConfigError(
                f"cannot read auth.secret_dir {self._folder}: {error.strerror}",
                hint="mount the Secret that spec.router.auth names",
            ) from error
        return frozenset(_digest(line.strip()) for line in lines if line.strip())


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
