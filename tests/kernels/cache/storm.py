"""Processes that want the same artefacts in the same moment: the scenario of triton #11512.

    storm.py ours|triton cheap|real fork|spawn ROUNDS ROOT

In each round 8 new processes take 8 variants, one after the other, with a barrier before each, on a
cache that is empty at first, below ROOT/volume. `cheap` compiles nothing and writes as much. Prints
as JSON what failed, how many variants were built how often, and by how many seconds the processes'
clocks differ.
"""

import collections
import hashlib
import importlib
import json
import multiprocessing
import os
import sys
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

PROCESSES = VARIANTS = 8
STAGES = ("source", "ttir", "ttgir", "llir", "ptx", "cubin", "json")
"""The files of a kernel in Triton's cache."""


class Ours:
    """The compile cache, as a pod uses it."""

    def __init__(self, root: Path, number: int, real: bool) -> None:
        from pds_kernels.cache import Cache

        self._root, self._real = root, real
        volume = root.parent / "volume" / root.name
        self._cache = Cache(volume, root / f"pod-{number}", b"key")

    def get(self, variant: int) -> None:
        def build(folder: Path) -> None:
            built(self._root, variant)
            content = cubin(variant) if self._real else slowly(variant)
            (folder / "kernel.cubin").write_bytes(content)
            (folder / "more").mkdir()
            (folder / "more" / "digest").write_text(hashlib.sha256(content).hexdigest())

        made = self._cache.get("k", {"variant": str(variant)}, build, timeout=120)
        content = (made.folder / "kernel.cubin").read_bytes()
        if (made.folder / "more" / "digest").read_text() != hashlib.sha256(content).hexdigest():
            raise ValueError("the artefact is not what was built")
        if not made.shared or self._cache.volume.trouble or self._cache.damage:
            wrong = [*self._cache.damage.values()]
            raise ValueError(f"not shared: {self._cache.volume.trouble} {wrong}")


class Tritons:
    """Triton's own cache, as triton.compile uses it."""

    def __init__(self, root: Path, number: int, real: bool) -> None:
        self._root, self._real = root, real
        self._folder = root.parent / "volume" / root.name
        os.environ["TRITON_CACHE_DIR"] = str(self._folder)

    def get(self, variant: int) -> None:
        if self._real:
            from storm_kernel import compile_variant

            compile_variant(variant)
            return
        from triton.runtime.cache import FileCacheManager

        manager = FileCacheManager(f"variant{variant}")
        group = manager.get_group("k.json") or {}
        if "k.json" not in group:
            built(self._root, variant)
            content = slowly(variant)
            group = {f"k.{each}": manager.put(content, f"k.{each}") for each in STAGES}
            manager.put_group("k.json", group)
        for path in group.values():
            if Path(path).read_bytes() != kernel(variant):
                raise ValueError("the kernel is not what was built")


def kernel(variant: int) -> bytes:
    return hashlib.sha256(str(variant).encode()).digest() * 2000


def slowly(variant: int) -> bytes:
    """As a compiler: 20 ms, in which every rival arrives."""
    time.sleep(0.02)
    return kernel(variant)


def cubin(variant: int) -> bytes:
    import triton
    from storm_kernel import compile_variant

    with tempfile.TemporaryDirectory() as own, triton.knobs.cache.scope():
        triton.knobs.cache.dir = own
        return compile_variant(variant)


def built(root: Path, variant: int) -> None:
    (root / f"built-{variant}-{os.getpid()}-{time.monotonic_ns()}").touch()


def process(what: tuple[str, str], root: Path, number: int, barrier: Barrier) -> None:
    (root / f"clock-{number}").write_text(str(time.time() - (root / "clock").stat().st_mtime))
    cache = (Ours if what[0] == "ours" else Tritons)(root, number, what[1] == "real")
    for variant in range(VARIANTS):
        barrier.wait(300)
        try:
            cache.get(variant)
        except Exception as error:
            where = error.__traceback__
            while where and where.tb_next:
                where = where.tb_next
            code = where.tb_frame.f_code.co_qualname if where else ""
            words = f"{type(error).__name__} {getattr(error, 'errno', '') or ''} in {code}: {error}"
            (root / f"failed-{variant}-{number}").write_text(words)


def main() -> None:
    system, how, method, rounds, root = *sys.argv[1:4], int(sys.argv[4]), Path(sys.argv[5])
    if method == "fork":  # once for all
        importlib.import_module("pds_kernels.cache" if system == "ours" else "triton.runtime.cache")
    context = multiprocessing.get_context(method)
    failures, builds = [], collections.Counter[int]()
    for at in range(rounds):
        here, barrier = root / f"round-{at}", context.Barrier(PROCESSES)
        here.mkdir()
        (here / "clock").touch()
        some = [
            context.Process(target=process, args=((system, how), here, number, barrier))
            for number in range(PROCESSES)
        ]
        for each in some:
            each.start()
        for each in some:
            each.join()
        failures += [path.read_text() for path in sorted(here.glob("failed-*"))]
        failures += [f"ended with {each.exitcode}" for each in some if each.exitcode]
        for variant in range(VARIANTS):
            builds[len(list(here.glob(f"built-{variant}-*")))] += 1
    clocks = [float(path.read_text()) for path in root.glob("round-*/clock-*")]
    apart = max(clocks) - min(clocks)
    print(json.dumps({"failures": failures, "builds": builds, "apart": apart}))


if __name__ == "__main__":
    main()
