"""Upgrades under load that nobody notices: another image and engine setting, another dtype, undo.

Clients stream from before the first edit until after the last. Counts are asserted; times to the
first token are printed (`pytest -rP`).
"""

import time
from dataclasses import dataclass

import pytest
import torch
from pds_cluster import image
from pds_cluster.settings import DEV_IMAGE
from reference import Reference
from serving import MODEL, Object, Serving
from streams import REST, Crowd, LoadPhase, Question, StreamOutcome, copies, crowd, known
from watching import ROLES, Watch, watching

pytestmark = pytest.mark.cluster
torch.set_num_threads(1)

SETTLED = 900.0
"""Seconds for one rollout: seven libraries by g++, on two cores that the clients share."""
SURE = 0.5
"""By this much the best token of a bfloat16 answer leads the second at each step."""
NEXT = "localhost/pds-dev:next"


@dataclass(frozen=True)
class Load:
    """How hard the clients press, and what the edits ask for."""

    clients: int
    rest: float
    quiet: int
    """Answers to each client before the first edit."""
    image: str
    chunk: int
    edits: int
    """1: image, engine and dtype at once. 2: the dtype after the others."""


CI = Load(clients=4, rest=REST, quiet=5, image=NEXT, chunk=64, edits=1)
SOAK = Load(clients=8, rest=0, quiet=25, image=DEV_IMAGE, chunk=128, edits=2)
"""Both cores are full all along, and a 99th percentile means something."""


@dataclass(frozen=True)
class RolloutStory:
    """What the clients got, what the watch saw, and when."""

    load: Load
    outcomes: list[StreamOutcome]
    watch: Watch
    phases: list[LoadPhase]


def sure(question: Question, reference: Reference) -> bool:
    """transformers gives this very answer in bfloat16, with no step at which it wavers."""
    ids = [*reference.ids(question.answer), reference.tokenizer.eos_token_id]
    greedy = reference.follow(reference.chat(list(question.messages)), ids)
    return greedy.differs(ids) is None and min(greedy.leads) >= SURE


@pytest.fixture(
    scope="module", params=[CI, pytest.param(SOAK, marks=pytest.mark.soak)], ids=["ci", "soak"]
)
def story(compiled: Serving, request: pytest.FixtureRequest) -> RolloutStory:
    serving, load = compiled, request.param
    image.tag(serving.cluster.settings, DEV_IMAGE, NEXT)
    serving.sized(prefill=1, decode=1)
    reference = Reference(MODEL, torch.bfloat16)
    drawn = [*known(serving, at_least=16), *copies(serving, at_least=8, words=100)]
    asked = [each for each in drawn if sure(each, reference)]
    assert len(asked) >= 12
    spec, phases = serving.object["spec"], []
    with (
        watching(serving) as watch,
        crowd(
            serving.url,
            asked,
            clients=load.clients,
            at_most=5000,
            seconds=4 * SETTLED,
            rest=load.rest,
        ) as clients,
    ):
        phases.append(quiet(clients, load))
        first = {"image": load.image, "engine": {**spec["engine"], "chunkSize": load.chunk}}
        last = {"model": {**spec["model"], "dtype": "bfloat16"}}
        if load.edits == 1:
            last |= first
        else:
            phases.append(rolled("image and chunkSize", watch, **first))
        good = serving.object
        phases.append(rolled("dtype", watch, **last))
        phases.append(undone(watch))
        serving.object = good
        clients.goes_on()
    return RolloutStory(load, clients.outcomes, watch, phases)


def quiet(clients: Crowd, load: Load) -> LoadPhase:
    """Before any edit."""
    began = time.monotonic()
    while len(clients.outcomes) < load.quiet * load.clients:
        clients.goes_on()
    return LoadPhase("before", began, time.monotonic())


def rolled(name: str, watch: Watch, **spec: Object | str) -> LoadPhase:
    began = time.monotonic()
    watch.serving.apply(**spec)
    watch.settled(SETTLED)
    return LoadPhase(name, began, time.monotonic())


def undone(watch: Watch) -> LoadPhase:
    """`kubectl pds undo`."""
    began = time.monotonic()
    watch.serving.pds("undo")
    watch.settled(SETTLED)
    return LoadPhase("undo", began, time.monotonic())


def test_no_request_fails_and_no_answer_is_wrong(story: RolloutStory) -> None:
    for phase in story.phases:
        print(phase.summary(story.outcomes))
    assert [each.trouble for each in story.outcomes if each.trouble] == []
    assert all(len(phase.of(story.outcomes)) >= story.load.clients for phase in story.phases)


def test_every_request_is_accounted_for(story: RolloutStory) -> None:
    """What follows is about all of them: the routers' logs name each one."""
    sent = {each.request_id for each in story.watch.attempts()}
    assert {each.request_id for each in story.outcomes} <= sent
    assert (
        len({story.watch.revision(each.decode) for each in story.watch.attempts()})
        == story.load.edits + 1
    )


def test_no_request_meets_a_cold_engine(story: RolloutStory) -> None:
    assert story.watch.early() == []
    assert story.watch.unproven() == {}
    assert len(story.watch.states) >= (story.load.edits + 2) * len(ROLES)


def test_no_pair_is_of_two_kv_formats(story: RolloutStory) -> None:
    pairs = story.watch.pairs()
    print(
        *(f"{prefill} -> {decode}: {count}" for (prefill, decode), count in pairs.items()), sep="\n"
    )
    assert story.watch.mixed() == []
    assert len(pairs) == 2


def test_both_floors_and_the_surge_hold_at_every_event(story: RolloutStory) -> None:
    for role in ROLES:
        seen = story.watch.events(role)
        print(role, len(seen), "events, at least", min(each.ready for each in seen), "ready")
        assert min(each.ready for each in seen) >= 1
        assert max(each.pods for each in seen) <= 2
