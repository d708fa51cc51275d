"""The bytes of weight files: a part of one tensor at a time, mapped, copied out and let go.

A mapping lives for one read alone. What a rank holds is thus what it has asked for, and at no time
more than one tensor's pages beside it; none of its weights is a view of a file that may change.
"""

import math
import mmap
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from pds_engine.models.files import unreadable
from pds_engine.models.headers import Stored, damaged

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U8": torch.uint8,
}


class MappedFiles:
    """Open weight files, until `close`.

    Raises:
        ConfigError: one is unreadable.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files: dict[Path, BinaryIO] = {}
        with ExitStack() as opened:
            for path in paths:
                try:
                    self._files[path] = opened.enter_context(path.open("rb"))
                except OSError as error:
                    raise unreadable(path, error) from error
            self._stack = opened.pop_all()

    def close(self) -> None:
        self._stack.close()

    def read(self, stored: Stored, parts: Sequence[range]) -> Tensor:
        """`parts` of a tensor, one range for each dimension, in its stored dtype; contiguous.

        Raises:
            ConfigError: the file is shorter than it was when its header was read.
        """
        dtype = _DTYPES[stored.dtype]
        lengths = [len(part) for part in parts]
        if 0 in lengths:
            return torch.empty(lengths, dtype=dtype)
        if not parts:
            return self._rows(stored, range(1), dtype.itemsize).view(dtype).view(())
        *others, last = stored.shape[1:] or (1,)
        row = math.prod(stored.shape[1:]) * dtype.itemsize
        found = self._rows(stored, parts[0], row)
        found = found.view(len(parts[0]), *others, last * dtype.itemsize)
        for dim, part in enumerate(parts[1:], start=1):
            size = dtype.itemsize if dim == len(parts) - 1 else 1
            found = found.narrow(dim, part.start * size, len(part) * size)
        # A copy, as bytes: a tensor in a file may begin where no number of its dtype may
        return found.clone(memory_format=torch.contiguous_format).view(dtype).view(lengths)

    def _rows(self, stored: Stored, rows: range, size: int) -> Tensor:
        """The bytes of `rows` of a tensor's first dimension, each of `size` bytes: a mapping."""
        begin, length = stored.begin + rows.start * size, len(rows) * size
        before = begin % mmap.ALLOCATIONGRANULARITY
        try:
            mapping = mmap.mmap(
                self._files[stored.path].fileno(),
                length + before,
                access=mmap.ACCESS_COPY,
                offset=begin - before,
            )
        except ValueError as error:
            raise damaged(stored.path, "it has become shorter since it was opened") from error
        except OSError as error:
            raise unreadable(stored.path, error) from error
        mapping.madvise(mmap.MADV_WILLNEED)  # at once, and not page after page as it is touched
        return torch.frombuffer(mapping, dtype=torch.uint8, offset=before, count=length)
