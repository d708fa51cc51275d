"""Decode groups short of pages in virtual time: what they preempt migrates through prefill."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from bounds import bounded
from pds_engine.messages import Submit
from pds_simulation import model
from pds_simulation.cluster import Cluster
from pds_simulation.events import Events
from pds_simulation.group import Machine
from simulated import Ask, Layout

LAYERS = 4


MakeCluster = Callable[..., Cluster]


@pytest.fixture
def cluster() -> MakeCluster:
    """A prefill group with pages to spare, and decode groups with `pages`."""

    def make(
        prefill: Layout, decode: Sequence[Layout], pages: int, *, page_size: int = 4, **bounds: Any
    ) -> Cluster:
        made = Cluster(Events(), lambda: 0.2)
        for role, (pp, tp), of in [
            ("prefill", prefill, 1024),
            *(("decode", each, pages) for each in decode),
        ]:
            settings = bounded(
                **{"page_size": page_size, "chunk_size": 64, "max_step_tokens": 128} | bounds,
                role=role,
                pp=pp,
                tp=tp,
                lease_seconds=1e6,  # prefill waits for room on decode as long as it takes
                step_timeout=1e6,
            )
            made.add(settings, Machine(pages=of, layers=LAYERS, control=lambda: 0.01))
        return made

    return make


def right(asked: Submit) -> tuple[int, ...]:
    return model.answer(asked, LAYERS).tokens


@pytest.mark.parametrize("seed", range(30))
def test_what_migrates_is_answered_as_if_it_never_did(
    cluster: MakeCluster, ask: Ask, seed: int
) -> None:
    rng = random.Random(seed)
    layouts = [(1, 1), (2, 1), (1, 2), (3, 1)]
    made = cluster(
        rng.choice(layouts),
        [rng.choice(layouts) for _ in range(1 + seed % 2)],
        pages=18,
        prefix_cache=rng.random() < 0.5,
    )
    asked = []
    for number in range(10):
        one = ask(
            f"r{number}",
            [rng.randrange(4) for _ in range(rng.randint(1, 8))],
            rng.randint(20, 60),
            seed=number,
            temperature=float(number % 2),
            presence_penalty=float(number % 3),
            priority=rng.choice((0, 0, 1)),
            resumable=rng.random() < 0.8,
        )
        asked.append(one)
        made.submit(one, decode=rng.randrange(len(made.decode)), at=rng.uniform(0, 30))
    made.run()
    assert [made.answer(each.request_id) for each in asked] == [right(each) for each in asked]
    preempted = sum(group.core.ledger.preemptions for group in made.decode)
    again = [name for group in made.decode for name in group.answers if name.endswith("+")]
    assert len(again) == preempted > 0


def test_the_oldest_is_never_preempted_and_each_comes_to_its_turn(
    cluster: MakeCluster, ask: Ask
) -> None:
    """Six that want all pages each: they are preempted again and again, but never by a younger."""
    made = cluster((1, 1), [(1, 1)], pages=16)
    asked = [ask(f"r{number}", 3, 61, seed=number, resumable=True) for number in range(6)]
    for number, one in enumerate(asked):
        made.submit(one, at=float(number))
    made.run()
    assert [made.answer(each.request_id) for each in asked] == [right(each) for each in asked]
    answers = made.decode[0].answers
    assert "r0+" not in answers
    ends = {
        name.rstrip("+"): each.times[-1] for name, each in answers.items() if each.finish_reason
    }
    assert sorted(ends, key=lambda name: ends[name]) == [f"r{number}" for number in range(6)]


def concurrent(made: Cluster, asked: Sequence[Submit]) -> int:
    """Most requests that decode at one time."""
    most, group = 0, made.decode[0]

    def look() -> None:
        nonlocal most
        most = max(most, len(group.core.ledger.decoding))

    made.events.every(1.0, look)
    for one in asked:
        made.submit(one)
    made.run()
    return most


def test_pages_are_held_for_what_is_used_not_for_what_may_be_asked_for(
    cluster: MakeCluster, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    """max_tokens 2048, of which 50 are used, on 512 pages of 16 tokens: 64 at once, not 3."""
    asked = []
    for number in range(64):
        full = right(ask("oracle", 64, 50, seed=number, temperature=1.0))
        stop = (full[-1],)
        asked.append((number, stop))
    most = {}
    for resumable in (False, True):
        made = cluster((1, 1), [(1, 1)], pages=512, page_size=16, max_running=64)
        most[resumable] = concurrent(
            made,
            [
                ask(
                    f"r{number}", 64, 2048, seed=number, temperature=1.0, stop_token_ids=stop,
                    resumable=resumable,
                )
                for number, stop in asked
            ],
        )  # fmt: skip
        preempted = made.decode[0].core.ledger.preemptions
        with capsys.disabled():
            print(f"\n64 requests, resumable: {resumable}: {most[resumable]} decode at once, "
                  f"{preempted} preempted")  # fmt: skip
    assert most[False] == 3
    assert most[True] >= 48
