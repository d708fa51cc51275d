"""Reads weight files ahead, into the kernel's cache, while processes start. No torch.

Loading reads one tensor after another, and each when it is asked for. Until then the worker imports
its modules, finds its kernels and waits for other ranks: time in which the storage can work.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from pds_engine.models.headers import Stored
from pds_engine.models.names import EMBEDDING, HEAD, layer_name
from pds_engine.parallel.layout import ModelPart
from pds_engine.spec import DecoderSpec, ExpertsSpec

_EXPERT = re.compile(r"^model\.layers\.(\d+)\..*\.experts\.(\d+)\.")
_PIECE = 8 << 20
"""Bytes that are asked for at once, so that the thread can be stopped in between."""


def wanted(
    contents: Mapping[str, Stored], spec: DecoderSpec, parts: Sequence[ModelPart]
) -> list[Stored]:
    """The tensors that ranks with these parts load, in about the order in which they do: embedding
    and head first, then the first layer of each, the second, …

    Whole tensors, of which a rank may load some rows alone; of experts that are split whole, those
    that one of the ranks holds.
    """
    prefixes = [EMBEDDING] if any(part.embeds for part in parts) else []
    prefixes += [HEAD] if any(part.samples for part in parts) else []
    for at in range(max(len(part.layers) for part in parts)):
        layers = {part.layers[at] for part in parts if at < len(part.layers)}
        prefixes += [layer_name(layer) for layer in sorted(layers)]
    by_prefix: dict[str, list[Stored]] = {prefix: [] for prefix in prefixes}
    for name, stored in contents.items():
        prefix = name if name in by_prefix else _layer_of(name)
        if prefix in by_prefix and _held(name, spec, parts):
            by_prefix[prefix].append(stored)
    return [stored for found in by_prefix.values() for stored in found]


def _layer_of(name: str) -> str:
    """layer_name of the layer that this tensor is of."""
    return ".".join(name.split(".", 3)[:3]) + "."


def _held(name: str, spec: DecoderSpec, parts: Sequence[ModelPart]) -> bool:
    found = _EXPERT.search(name)
    if found is None:
        return True
    layer, expert = int(found[1]), int(found[2])
    feed = spec.layers[layer].feed
    return isinstance(feed, ExpertsSpec) and any(
        layer in part.layers and expert in part.experts(feed.experts) for part in parts
    )


def spans(tensors: Iterable[Stored], most: int) -> Iterator[tuple[Path, int, int]]:
    """File, first byte and length of what to read: of these tensors, with their scales, the first
    `most` bytes."""
    for stored in tensors:
        for each in (stored, *([stored.scale.tensor] if stored.scale else [])):
            end = each.begin + each.length
            for begin in range(each.begin, end, _PIECE):
                length = min(_PIECE, end - begin, most)
                if length <= 0:
                    return
                most -= length
                yield each.path, begin, length


class Ahead:
    """A thread that asks the kernel for spans of files, one after another."""

    def __init__(self, found: Iterable[tuple[Path, int, int]]) -> None:
        self._found = found
        self._stopped = Event()
        self.asked = 0
        """Bytes."""
        self._thread = Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ask for no more."""
        self._stopped.set()
        self._thread.join()

    def wait(self) -> None:
        """Until all is asked for."""
        self._thread.join()

    def _run(self) -> None:
        files: dict[Path, int] = {}
        try:
            # A file that cannot be read is reported by who loads it
            with suppress(OSError):
                for path, begin, length in self._found:
                    if self._stopped.is_set():
                        return
                    if path not in files:
                        files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    os.posix_fadvise(files[path], begin, length, os.POSIX_FADV_WILLNEED)
                    self.asked += length
        finally:
            for descriptor in files.values():
                os.close(descriptor)
