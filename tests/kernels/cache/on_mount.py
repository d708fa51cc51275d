"""Run by test_volume.py in a mount namespace of its own: a tmpfs of 64 KiB at FOLDER/volume.

    on_mount.py full|read-only|prune FOLDER [model]

With `model` nothing is mounted, and the file system's part is played by a class of refusing.py.
Prints what it saw as JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cache_pods import leftovers
from pds_kernels.cache import Cache, Trouble, prune
from pds_kernels.cache.files import Files
from refusing import ReadOnly, Small

what, root, model = sys.argv[1], Path(sys.argv[2]), "model" in sys.argv
volume = root / "volume"
kinds: Callable[[], Files] = Files


def mount(*options: str) -> None:
    words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(volume)]
    subprocess.run(words, check=True, stdout=sys.stderr)


def build(folder: Path) -> None:
    (folder / "kernel.so").write_bytes(os.urandom(400_000))


def pods(*inputs: str) -> dict[str, object]:
    """Two pods, one after the other, each with a folder of its own."""
    made, troubles = [], []
    for index, text in enumerate(inputs):
        cache = Cache(volume, root / f"pod-{index}", b"key", files=kinds)
        made.append(cache.get("k", {"source": text}, build))
        troubles.append(cache.volume.trouble)
    return {
        "built": [each.built for each in made],
        "shared": [each.shared for each in made],
        "troubles": troubles,
        "left": leftovers(root),
    }


def pruned() -> dict[str, object]:
    """Filled to the last byte by something else than the one artefact that it has."""
    cache = Cache(volume, root / "pod", b"key", files=kinds)
    shelf = cache.volume.shelf
    files = kinds()
    meta = {"files": {}, "seconds": 1.0, "seal_key": cache.seal_key}
    scratch = shelf.new_scratch(files)
    shelf.commit(files, scratch, "k", "0" * 64, meta)
    with (volume / "filler").open("wb", buffering=0) as file:
        try:
            while files.space(volume).free:
                file.write(bytes(4096))
        except OSError:
            pass
    before = files.space(volume).free
    try:
        removed = len(prune(cache, unused_for=0, now=1e12))
    except Trouble as trouble:
        return {"error": str(trouble)}
    return {"before": before, "removed": removed, "after": kinds().space(volume).free}


volume.mkdir(exist_ok=True)
Small.root = volume
if not model:
    mount("size=64k")
elif what != "read-only":
    kinds = Small
match what:
    case "full":
        found = pods("a", "b")
    case "prune":
        found = pruned()
    case _:
        if not model:
            subprocess.run(["umount", str(volume)], check=True)
            mount("size=8m")
        Cache(volume, root / "maker", b"key").get("k", {"source": "a"}, build)
        if model:
            kinds = ReadOnly
        else:
            mount_ro = ["mount", "-o", "remount,ro", str(volume)]
            subprocess.run(mount_ro, check=True, stdout=sys.stderr)
        found = pods("a", "b")
print(json.dumps(found))
