"""Groups in virtual time, and the requests that are put to them."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import pytest
from bounds import bounded
from pds_engine.messages import Sampling, Submit
from pds_engine.scheduler.settings import Settings
from pds_simulation.events import Events
from pds_simulation.group import Group, Machine
from pds_simulation.replicas import Between, DataParallelGroup
from simulated import Ask, Simulate, SimulateRanks

BETWEEN = [field.name for field in fields(Between)]


@pytest.fixture(scope="session")
def simulate() -> Simulate:

    def make(**about: Any) -> Group:
        return Group(Events(), *configured(about))

    return make


@pytest.fixture(scope="session")
def simulate_ranks() -> SimulateRanks:

    def make(**about: Any) -> DataParallelGroup:
        between = Between(**{name: about.pop(name) for name in BETWEEN if name in about})
        return DataParallelGroup(Events(), *configured(about), between)

    return make


def configured(about: dict[str, Any]) -> tuple[Settings, Machine]:
    machine = {name: about.pop(name) for name in Machine.__slots__ if name in about}
    settings = {"max_model_len": 1 << 20, "step_timeout": float("inf"), "chunk_size": 16}
    settings |= {"max_running": 80, "max_step_tokens": about.get("chunk_size", 16) + 80}
    chosen = bounded(**(settings | about))
    return chosen, Machine(**({"layers": max(4, chosen.parallelism.pp)} | machine))


@pytest.fixture(scope="session")
def ask() -> Ask:

    def make(
        name: str, prompt: int | Sequence[int], max_tokens: int = 1, *, seed: int = 1, **more: Any
    ) -> Submit:
        given = {
            key: more.pop(key)
            for key in ("output_ids", "role_hint", "priority", "resumable")
            if key in more
        }
        return Submit(
            request_id=name,
            prompt_ids=tuple(range(prompt)) if isinstance(prompt, int) else tuple(prompt),
            sampling=Sampling(max_tokens=max_tokens, **more),
            seed=seed,
            **given,
        )

    return make
