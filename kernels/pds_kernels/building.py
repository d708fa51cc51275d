"""What warm-up builds, whatever compiler it takes: the one interface of all builders."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

_built: list[str] = []
_KILLED = (-9, 137)
"""SIGKILL, as `subprocess` and as a shell report it."""
_WORDS = "Killed signal terminated program"
"""The driver of gcc, of its compiler proper; it ends with 1 itself."""


def note(name: str) -> None:
    """This process compiles `name`, ahead of time or not."""
    _built.append(name)


def builds() -> int:
    """How often this process has compiled something."""
    return len(_built)


class Buildable(Protocol):
    """One artefact of the compile cache, and how it is made."""

    @property
    def kind(self) -> str:
        """Of builder: the folder in the cache."""

    @property
    def name(self) -> str:
        """Unique among what one pod wants; for people, and for the manifest."""

    @property
    def memory(self) -> int:
        """Bytes that its compiler takes at the most."""

    def key_inputs(self) -> Mapping[str, str]:
        """Everything that decides the artefact."""

    def build(self, folder: Path) -> None:
        """Compile it into `folder`."""


def was_killed(error: BaseException | None) -> bool:
    """Whether `error` says that memory ran out, or that a compiler was ended by SIGKILL.

    That is how the kernel takes memory back. A builder's own words for it are often the compiler's.
    """
    while error is not None:
        if isinstance(error, MemoryError) or _WORDS in str(error):
            return True
        if isinstance(error, subprocess.CalledProcessError) and error.returncode in _KILLED:
            return True
        error = error.__cause__ or error.__context__
    return False
