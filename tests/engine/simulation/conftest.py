"""Groups in virtual time, and the requests that are put to them."""

from collections.abc import Sequence
from typing import Any

import pytest
from bounds import bounded
from pds_engine.messages import Sampling, Submit
from pds_simulation.events import Events
from pds_simulation.group import Group, Machine
from simulated import Ask, Simulate


@pytest.fixture(scope="session")
def simulate() -> Simulate:

    def make(**about: Any) -> Group:
        machine = {name: about.pop(name) for name in Machine.__slots__ if name in about}
        settings = {"max_model_len": 1 << 20, "step_timeout": float("inf"), "chunk_size": 16}
        settings |= {"max_running": 80, "max_step_tokens": about.get("chunk_size", 16) + 80}
        chosen = bounded(**(settings | about))
        return Group(
            Events(), chosen, Machine(**({"layers": max(4, chosen.parallelism.pp)} | machine))
        )

    return make


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
