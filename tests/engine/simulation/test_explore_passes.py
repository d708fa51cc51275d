"""Model checking: however two dp ranks are interleaved, all requests end and both ranks rest."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from bounds import bounded
from pds_engine.messages import Gathered
from pds_engine.scheduler import planner
from pds_engine.scheduler.dp.passes import Passes
from pds_engine.scheduler.dp.rows import SyncRow, unpack
from pds_engine.scheduler.planner import Planner
from pds_simulation.explore import Violation
from pds_simulation.explore_passes import Pair, World, _effect


def pair(requests: tuple[int, int], tokens: int = 2, **about: Any) -> Pair:
    given = {name: about.pop(name) for name in ("drains", "repeats") if name in about}
    small = {"page_size": 4, "chunk_size": 4, "max_step_tokens": 8, "max_running": 2}
    settings = bounded(**(small | {"dp": 2, "prefix_cache": False, "enabled": False} | about))
    return Pair(settings, requests, tokens, **given)


@pytest.mark.parametrize(
    ("states", "requests", "tokens", "about"),
    [
        (323, (1, 0), 2, {}),
        (6_881, (1, 1), 2, {}),
        (9_651, (1, 1), 2, {"enabled": True}),
        (2_207, (1, 1), 2, {"async_scheduling": False}),
        (12_616, (1, 1), 2, {"pp": 2}),
        (9_821, (1, 1), 2, {"page_size": 1, "window": 2}),
        (33_058, (2, 1), 1, {}),
        (55_119, (1, 1), 1, {"drains": True}),
        pytest.param(143_985, (1, 1), 2, {"drains": True}, marks=pytest.mark.soak),
        pytest.param(545_814, (1, 1), 3, {"pp": 2, "drains": True}, marks=pytest.mark.soak),
        pytest.param(750_984, (2, 2), 2, {}, marks=pytest.mark.soak),
        pytest.param(
            936_494, (2, 1), 2, {"max_running": 1, "drains": True}, marks=pytest.mark.soak
        ),
    ],
)
def test_all_interleavings(
    states: int,
    requests: tuple[int, int],
    tokens: int,
    about: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    """Work that comes at any moment, wake-ups that come twice and late, steps, a drain."""
    monkeypatch.setattr(planner, "PACE", 0.0)  # no time passes here
    assert pair(requests, tokens, **about).explore() == states


def test_what_is_explored_is_what_happens():
    """Two ways to one place go on alike: walks at random, with schedulers that live on."""
    explored = pair((2, 2), 3)
    for seed in range(40):
        rng, world = random.Random(seed), World((0, 0))
        living = [places._made(()) for places in explored._schedulers]
        while events := [(r, e) for r in (0, 1) for e in explored._events(world, r)]:
            rank, event = rng.choice(events)
            places = explored._schedulers[rank]
            said = _effect(places._do(living[rank], event))
            assert said == places.step(world.at[rank], event)[1]
            world = explored._moved(world, rank, event)
        explored._check_rest(world)


# ---- passes that are wrong, as others' were ------------------------------------------------------


def deaf_in_a_pass(self: Passes, pass_id: int) -> None:
    """A wake-up is lost that comes before the last pass's rows."""
    if not self.gathering:
        self._woken = max(self._woken, pass_id)


def any_wake_counts(self: Passes, pass_id: int) -> None:
    """One that comes again, after its pass, wakes too."""
    self._woken = max(self._woken, self.next_id)


def unheard(self: Passes, pass_id: int) -> None:
    """Nobody wakes the idle (sglang #34582)."""


def with_own_work(self: Passes, work: bool) -> bool:
    return not self.gathering and work


def never_rests(self: Passes, rows: Sequence[SyncRow]) -> None:
    self.gathering = self.parked = False
    self.next_id += 1


PASSES: dict[str, tuple[str, Callable[..., Any]]] = {
    "a wake-up before the last rows is lost": ("wake", deaf_in_a_pass),
    "an old wake-up counts": ("wake", any_wake_counts),
    "the idle are not woken": ("wake", unheard),
    "only ranks with work join": ("enters", with_own_work),
    "ranks never park": ("gathered", never_rests),
}


@pytest.mark.parametrize("mistake", PASSES)
def test_wrong_passes_are_found(monkeypatch: pytest.MonkeyPatch, mistake: str):
    name, wrong = PASSES[mistake]
    monkeypatch.setattr(Passes, name, wrong)
    with pytest.raises(Violation, match=r"rank \d does not rest in pass \d"):
        pair((2, 0), 1).explore()


def test_a_rank_that_parks_by_its_own_row_is_found(monkeypatch: pytest.MonkeyPatch):
    """The other, with work, goes on without waking it."""
    right = Planner.gathered

    def gathered(self: Planner, message: Gathered, now: float) -> None:
        right(self, message, now)
        own = unpack(message.rows, 2)[self._dp_rank]
        self.passes.parked = not (own.decode_tokens or own.prompt_tokens)

    monkeypatch.setattr(Planner, "gathered", gathered)
    with pytest.raises(Violation, match="rank 0 does not rest in pass 1"):
        pair((1, 0)).explore()


def test_a_full_pipeline_as_the_condition_to_join_is_found(monkeypatch: pytest.MonkeyPatch):
    """LLMServingSim #65."""
    right = Planner._enter

    def enter(self: Planner, now: float) -> None:
        opens = self.passes.parked and self.passes._woken < self.passes.next_id
        if opens or self.steps.in_flight:
            right(self, now)

    monkeypatch.setattr(Planner, "_enter", enter)
    with pytest.raises(Violation, match="rank 0 does not rest in pass 0"):
        pair((1, 1), pp=2).explore()


def test_a_violation_says_how_it_came_about(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Passes, "wake", unheard)
    with pytest.raises(Violation, match=r", after submit 0 at 0, plan at 0, .*wake 0 at 1"):
        pair((1, 0)).explore()
