"""The ranks of a stage as threads that speak gloo."""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from pds_engine.parallel.collectives import ALONE, Collectives

T = TypeVar("T")


def on_grid(tp: int, dp: int, work: Callable[[Collectives, Collectives], T]) -> list[T]:
    """`work` on the tp·dp ranks of a stage, with the collectives of its attention group and of the
    stage; they are threads, and speak gloo all the same. What one raises is raised here."""
    size, stores = tp * dp, [dist.HashStore() for _ in range(dp + 1)]
    found, raised = dict[int, T](), dict[int, Exception]()

    def collectives(store: dist.Store, at: int, of: int) -> Collectives:
        if of == 1:
            return ALONE
        return Collectives(dist.ProcessGroupGloo(store, at, of, timedelta(seconds=30)), at, of)

    def rank(at: int) -> None:
        try:
            stage = collectives(stores[dp], at, size)
            group, shard = divmod(at, tp)
            attention = stage if dp == 1 else collectives(stores[group], shard, tp)
            found[at] = work(attention, stage)
        except Exception as error:
            raised[at] = error

    threads = [threading.Thread(target=rank, args=(at,)) for at in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in raised.values():
        raise error
    return [found[at] for at in range(size)]
