"""Hand-overs in virtual time: equal and unlike layouts, in order and given up."""

import random
from collections.abc import Callable

import pytest
from bounds import bounded
from pds_engine.errors import PdsError
from pds_engine.messages import Push
from pds_simulation.cluster import Cluster
from pds_simulation.events import Events
from pds_simulation.group import Machine
from pds_simulation.runner import SimulatedRunner
from pds_simulation.transfers import SimulatedTransfers
from simulated import Ask, Layout

PAGE = 4


MakePair = Callable[..., Cluster]


@pytest.fixture
def pair() -> MakePair:
    def make(prefill: Layout, decode: Layout, seed: int = 0, copy: float = 0.5) -> Cluster:
        rng = random.Random(seed)

        def some(mean: float) -> Callable[[], float]:
            return lambda: rng.expovariate(1 / mean) if seed else mean

        cluster = Cluster(Events(), some(copy))
        for role, (pp, tp) in (("prefill", prefill), ("decode", decode)):
            settings = bounded(
                role=role, pp=pp, tp=tp, page_size=PAGE, chunk_size=8, max_step_tokens=24
            )
            cluster.add(settings, Machine(pages=64, control=some(0.01), rendezvous=seed % 2 == 0))
        return cluster

    return make


@pytest.mark.parametrize("decode", [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2)])
@pytest.mark.parametrize("prefill", [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2)])
def test_a_prompt_is_handed_over(pair: MakePair, ask: Ask, prefill: Layout, decode: Layout):
    cluster = pair(prefill, decode)
    cluster.submit(ask("long", 27, 6))
    cluster.submit(ask("short", 3, 4, temperature=0.0))
    cluster.submit(ask("one", 9, 1))
    answers = cluster.run()
    assert [len(answer.tokens) for answer in answers] == [6, 4, 1]
    assert [len(answer.tokens) for answer in cluster.prefill[0].answers.values()] == [1, 1, 1]


def test_pages_travel_while_the_next_chunk_computes(pair: MakePair, ask: Ask):
    """Only the last chunk's copy comes after the first token; those before are hidden."""
    cluster = pair((1, 1), (1, 1), copy=0.9)
    cluster.submit(ask("r", 8 * 8, 2))
    (answer,) = cluster.run()
    first = cluster.prefill[0].answers["r"].times[0]
    assert answer.times[0] - first == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("seed", range(1, 101))
def test_requests_are_answered_or_given_up_on_either_side(pair: MakePair, ask: Ask, seed: int):
    rng = random.Random(seed)
    layouts = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)]
    cluster = pair(rng.choice(layouts), rng.choice(layouts), seed, rng.uniform(0.01, 3.0))
    for number in range(rng.randint(1, 8)):
        name, at = f"r{number}", rng.uniform(0, 10)
        prompt = [rng.randrange(4) for _ in range(rng.randint(1, 30))]
        cluster.submit(ask(name, prompt, rng.randint(1, 9), seed=number), at=at)
        if rng.random() < 0.3:
            gone = at + rng.expovariate(0.3)
            cluster.decode[0].cancel(name, gone)
            cluster.prefill[0].cancel(name, gone + rng.uniform(-0.1, 0.1))
    cluster.run()


@pytest.mark.parametrize("mistake", ["a page that is left out", "pages in another order"])
def test_a_wrong_copy_shows(
    pair: MakePair, ask: Ask, monkeypatch: pytest.MonkeyPatch, mistake: str
):
    right = SimulatedTransfers.place

    def wrong(self: SimulatedTransfers, push: Push, epoch: int, source: SimulatedRunner) -> None:
        pages = push.src_pages
        changed = pages[:-1] if mistake == "a page that is left out" else pages[::-1]
        there = push.dst_pages[: len(changed)]
        copied = Push(transfer=push.transfer, src_pages=changed, dst_pages=there, last=push.last)
        right(self, copied, epoch, source)

    monkeypatch.setattr(SimulatedTransfers, "place", wrong)
    cluster = pair((1, 1), (1, 1))
    cluster.submit(ask("r", 30, 5))
    with pytest.raises(PdsError, match="r was sent"):
        cluster.run()
