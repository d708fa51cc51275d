"""That a request changes by the ledger's transitions alone, whatever happens to it."""

import random
import sys

import pytest
from pds_engine.scheduler.request import Request
from scheduling.groups import random_groups

OWNERS = {f"pds_engine.scheduler.{name}" for name in ("lifecycle", "allocation", "request")}


@pytest.mark.parametrize("pair", [False, True])
def test_nobody_else_writes_a_request(monkeypatch: pytest.MonkeyPatch, pair: bool) -> None:
    """In random runs, which preempt, migrate, cancel, abort and hand over."""
    strangers: set[str] = set()
    write = Request.__setattr__

    def guarded(self: Request, name: str, value: object) -> None:
        caller = sys._getframe(1).f_globals["__name__"]
        if caller not in OWNERS:
            strangers.add(f"{caller} writes {name}")
        write(self, name, value)

    monkeypatch.setattr(Request, "__setattr__", guarded)
    written = 0
    for seed in range(3):
        groups = random_groups(random.Random(seed), pair=pair, pp=2, tp=1, fenced=True, mishaps=2.0)
        groups.run(events=300)
        groups.end()
        written += groups.nodes[0].core.steps.next_id
    assert (strangers, written > 0) == (set(), True)
