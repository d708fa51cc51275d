"""The folder of one user on this machine: in a pod, what its init and main containers share."""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def own_folder(name: str) -> Path:
    """`name` in the system's folder for temporary files, of this user alone.

    Whoever can write it can run code in the processes that load from it. So a folder that is not
    ours, or that others may write, is left alone. The answer is then a new one, which nobody finds
    again.

    Raises:
        OSError: no folder can be made.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.geteuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if ours and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return folder
    return Path(tempfile.mkdtemp(prefix=f"{name}-"))
