"""The control keys that a router holds, by id: two or more while keys are rotated.

They come from a folder, `keys_dir`. When the Secret behind it changes, Kubernetes swaps all files
at once. They are few and small, so that all of them are read each time.
"""

import asyncio
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pds_engine.errors import ConfigError
from pds_engine.signing import key_id

logger = logging.getLogger(__name__)

READ_SECONDS = 2.0
"""Between two reads of the folder."""
DEFAULT = "hmac.key"
NAMED = re.compile(r"[0-9a-f]{10}\.key")
MOST = 64
"""Files that are read."""
LONGEST = 1024
"""Bytes of one."""


@dataclass(frozen=True, slots=True)
class Ring:
    """What a folder holds."""

    keys: Mapping[str, bytes]
    default: str = ""
    """The id of the one in hmac.key."""


class Keyring:
    """Keys by id. The first of those given is that of groups that do not report theirs."""

    def __init__(self, *keys: bytes) -> None:
        self._keys = {key_id(key): key for key in keys}
        self._default = key_id(keys[0]) if keys else ""

    def __bool__(self) -> bool:
        return bool(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def name(self, reported: str) -> str:
        """The id of a group's key, given what the group reports; "": it reports none."""
        return reported or self._default

    def of(self, name: str) -> bytes | None:
        """The key of that id."""
        return self._keys.get(name)

    def take(self, ring: Ring, used: Collection[str]) -> bool:
        """Adopt what the folder holds now; True when that changes anything.

        A key that is no longer there is kept as long as it is `used`. All are kept when the folder
        holds none: somebody may have deleted the Secret, and groups work on with their keys.
        """
        if not ring.keys:
            return False
        before = self._keys, self._default
        kept = {name: key for name, key in self._keys.items() if name in used}
        self._keys = {**kept, **ring.keys}
        self._default = ring.default or self._default
        return before != (self._keys, self._default)


def read(folder: Path) -> Ring:
    """The keys in `folder`: hmac.key, and <id>.key by the ids that they have.

    Raises:
        ConfigError: the folder or a key cannot be read, or a key is not hexadecimal.
    """
    try:
        # One version of the Secret: Kubernetes swaps this link, and the files are behind it.
        base = (folder / "..data").resolve(strict=True) if (folder / "..data").exists() else folder
        files = sorted(p for p in base.iterdir() if p.name == DEFAULT or NAMED.fullmatch(p.name))
        keys = {path.name: _key(path) for path in files[:MOST]}
    except OSError as error:
        raise ConfigError(
            f"cannot read the control keys in {folder}: {error.strerror}",
            hint="mount the Secret <pdserving>-keyring at keys_dir",
        ) from error
    default = key_id(keys[DEFAULT]) if DEFAULT in keys else ""
    return Ring({key_id(key): key for key in keys.values()}, default)


def opened(folder: Path) -> Keyring:
    """A keyring with the keys in `folder`.

    Raises:
        ConfigError: as `read`, and there is none.
    """
    keys, ring = Keyring(), read(folder)
    if not ring.keys:
        raise ConfigError(
            f"there is no control key in {folder}",
            hint="mount the Secret <pdserving>-keyring at keys_dir",
        )
    keys.take(ring, ())
    return keys


async def follow(
    keys: Keyring, folder: Path, used: Callable[[], Collection[str]], changed: Callable[[], None]
) -> None:
    """Follow `folder` for ever; `used` gives the ids of the groups' keys."""
    trouble = ""
    while True:
        await asyncio.sleep(READ_SECONDS)
        try:
            news = keys.take(read(folder), used())
            trouble = ""
        except ConfigError as error:
            if error.message != trouble:
                trouble = error.message
                logger.warning("the control keys stay as they are", extra={"trouble": trouble})
            continue
        if news:
            logger.info("the control keys have changed", extra={"keys": sorted(keys)})
            changed()


def _key(path: Path) -> bytes:
    with path.open() as file:
        text = file.read(LONGEST)
    try:
        return bytes.fromhex(text.strip())
    except ValueError as error:
        raise ConfigError(f"{path} is not hexadecimal") from error
