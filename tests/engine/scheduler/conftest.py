"""A scheduler on the bench (scheduling/bench.py says how to read its lines)."""

from typing import Any

import pytest
from bounds import bounded
from scheduling.bench import Bench, MakeBench

pytest.register_assert_rewrite("scheduling.groups", "scheduling.node", "scheduling.workers")


@pytest.fixture(scope="session")
def bench() -> MakeBench:
    def make(pages: int = 64, ranks: tuple[int, ...] = (), **bounds: Any) -> Bench:
        small = {"chunk_size": 32, "max_step_tokens": 40, "max_running": 4, "max_waiting": 4}
        small["prefix_cache"] = False  # page numbers are those just freed, unless a test says so
        settings = bounded(**(small | bounds))
        return Bench(settings, ranks or (pages,) * settings.ranks)

    return make
