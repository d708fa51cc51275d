"""Whatever a stage is given wrongly, its numbers show it."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace
from pds_engine.errors import ProtocolError
from pds_engine.messages import Admit, Release, Row, Sampling, StepPlan, Submit
from pds_engine.parallel.stage import StagePlace
from pds_simulation import model
from pds_simulation.exchange import Hidden
from pds_simulation.runner import SimulatedRunner

PAGE = 4
PROMPT = tuple(range(50, 60))
ADMIT = Admit(
    slot=1,
    gen=3,
    prompt_ids=PROMPT,
    output_ids=(),
    sampling=Sampling(max_tokens=9),
    seed=7,
    pages=(5, 2, 6),
)


def step(number: int, *rows: Row) -> StepPlan:
    tokens = sum(row.length for row in rows)
    return StepPlan(
        step_id=number,
        rows=rows,
        expects_output=False,
        depends_on=-1,
        padded_tokens=tokens,
    )


def row(start: int, length: int, samples: bool = False, **more: Any) -> Row:
    return Row(slot=1, gen=3, start=start, length=length, samples=samples, **more)


def whole() -> SimulatedRunner:
    """A model of two layers in one stage."""
    return SimulatedRunner(StagePlace(0, 1), 0, range(2), pages=8, page_size=PAGE, max_slots=2)


def tokens(runner: SimulatedRunner, plan: StepPlan) -> tuple[int, ...]:
    done = runner.launch(plan, None).collect()
    assert done is not None
    return done.tokens


def right(count: int) -> tuple[int, ...]:
    request = Submit(request_id="r", prompt_ids=PROMPT, sampling=ADMIT.sampling, seed=7)
    return model.answer(request, 2).tokens[:count]


def generate(runner: SimulatedRunner, admit: Admit = ADMIT) -> tuple[int, ...]:
    """Two chunks of the prompt, then two tokens more."""
    runner.admit(admit)
    runner.launch(step(0, row(0, 8)), None)
    found = tokens(runner, step(1, row(8, 2, samples=True)))
    found += tokens(runner, step(2, row(10, 1, samples=True)))
    return found + tokens(runner, step(3, row(11, 1, samples=True)))


def test_it_says_what_the_model_says():
    assert generate(whole()) == right(3)


def test_two_stages_say_the_same():
    first = SimulatedRunner(StagePlace(0, 2), 0, range(1), pages=8, page_size=PAGE, max_slots=2)
    last = SimulatedRunner(StagePlace(1, 2), 0, range(1, 2), pages=8, page_size=PAGE, max_slots=2)
    first.admit(ADMIT)
    last.admit(ADMIT)
    plan = step(0, row(0, 10, samples=True))
    done = last.launch(plan, first.launch(plan, None).hidden).collect()
    assert done is not None and done.tokens == right(1)
    first.accept(plan, done.tokens)
    plan = step(1, row(10, 1, samples=True))
    done = last.launch(plan, first.launch(plan, None).hidden).collect()
    assert done is not None and done.tokens == right(2)[1:]


def stale_page(runner: SimulatedRunner) -> None:
    runner.memory[1][2 * PAGE] += 1


def swapped_pages(runner: SimulatedRunner) -> None:
    pages = runner.slots[1].pages
    pages[0], pages[1] = pages[1], pages[0]


def lost_token(runner: SimulatedRunner) -> None:
    runner.slots[1].last = 0


def shifted_tokens(runner: SimulatedRunner) -> None:
    slot = runner.slots[1]
    slot.known = slot.known[1:] + slot.known[:1]


@pytest.mark.parametrize("mishap", [stale_page, swapped_pages, lost_token])
def test_a_mishap_changes_the_next_token(mishap: Callable[[SimulatedRunner], None]):
    runner = whole()
    runner.admit(ADMIT)
    tokens(runner, step(0, row(0, 10, samples=True)))
    mishap(runner)
    assert tokens(runner, step(1, row(10, 1, samples=True))) != right(2)[1:]


def test_tokens_out_of_place_change_what_follows():
    runner = whole()
    runner.admit(ADMIT)
    shifted_tokens(runner)
    assert tokens(runner, step(0, row(0, 10, samples=True))) != right(1)


def test_a_page_that_was_never_written_shows():
    runner = whole()
    runner.admit(ADMIT)
    runner.launch(step(0, row(4, 4)), None)
    assert tokens(runner, step(1, row(8, 2, samples=True))) != right(1)


def test_what_came_with_the_request_is_part_of_its_context():
    """A request that moved: the tokens so far are given, and the next one is the same."""
    runner = whole()
    given = right(2)
    runner.admit(replace(ADMIT, output_ids=given))
    assert tokens(runner, step(0, row(0, 12, samples=True))) == right(3)[2:]


def test_another_generation_gets_nothing():
    runner = whole()
    runner.admit(ADMIT)
    plan = step(0, row(0, 10, samples=True))
    runner.launch(plan, None)
    runner.release(Release(slot=1, gen=3, after_step=0))
    runner.admit(replace(ADMIT, gen=4))
    runner.accept(plan, (5,))
    assert runner.slots[1].last == -1
    with pytest.raises(ProtocolError, match="generation 3, which holds 4"):
        runner.launch(step(1, row(0, 1)), None)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (step(0, row(0, 13)), "beyond its 3 pages"),
        (step(0, Row(slot=0, gen=1, start=0, length=1)), "holds None"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan: StepPlan, message: str):
    runner = whole()
    runner.admit(ADMIT)
    with pytest.raises(ProtocolError, match=message):
        runner.launch(plan, None)


@pytest.mark.parametrize(
    "hidden", [None, Hidden(1, ((1, 2),)), Hidden(0, ((1, 2, 3),)), Hidden(0, ())]
)
def test_foreign_hidden_states_are_refused(hidden: Hidden | None):
    runner = SimulatedRunner(StagePlace(1, 2), 0, range(2), pages=8, page_size=PAGE, max_slots=2)
    runner.admit(ADMIT)
    with pytest.raises(ProtocolError, match="was given"):
        runner.launch(step(0, row(0, 2)), hidden)


@pytest.mark.parametrize("sampled", [(), (1, 2), (-1,), (model.VOCAB,)])
def test_no_invalid_token_reaches_a_slot(sampled: tuple[int, ...]):
    runner = whole()
    runner.admit(ADMIT)
    with pytest.raises(ProtocolError, match="samples for 1 rows"):
        runner.accept(step(0, row(0, 10, samples=True)), sampled)


def test_stop_ids_are_not_drawn_too_early():
    stops = tuple(range(0, model.VOCAB, 2))
    asked = Sampling(max_tokens=6, min_tokens=4, stop_token_ids=stops, temperature=0.0)
    request = Submit(request_id="r", prompt_ids=PROMPT, sampling=asked, seed=7)
    found = model.answer(request, 2).tokens
    assert len(found) >= 5 and not set(found[:4]).intersection(stops)
