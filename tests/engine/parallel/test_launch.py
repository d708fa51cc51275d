"""Which step is launched before which one is collected: decided from plans alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pds_engine.messages import Push, Row, StepPlan
from pds_engine.parallel.launch import DEPTH, OVER, behind, must_collect


def plan(step: int, depends_on: int = -1, *transfers: str) -> StepPlan:
    return StepPlan(
        step_id=step,
        rows=(Row(slot=0, gen=1, start=0, length=1, samples=True),),
        expects_output=True,
        depends_on=depends_on,
        padded_tokens=1,
        pushes=tuple(Push(transfer=t, src_pages=(), dst_pages=(), last=False) for t in transfers),
    )


@pytest.mark.parametrize(
    ("launched", "depends_on", "alone", "last_of_several"),
    [
        ((), -1, False, False),
        ((), 4, False, False),
        ((4,), -1, False, False),
        ((4,), 3, False, False),
        ((4,), 4, False, True),  # its hidden states come after the output of step 4
        ((3, 4), -1, True, True),  # two are enough
    ],
)
def test_what_is_collected_first(
    launched: tuple[int, ...], depends_on: int, alone: bool, last_of_several: bool
) -> None:
    steps = [plan(step) for step in launched]
    wanted = plan(5, depends_on)
    assert must_collect(steps, wanted, sends_outputs=False) is alone
    assert must_collect(steps, wanted, sends_outputs=True) is last_of_several


def order(reads: list[int], *, sends_outputs: bool) -> list[str]:
    """Launches and collects of a rank whose events fire as late as they can."""
    launched: list[StepPlan] = []
    done = []
    for step, read in enumerate(reads):
        wanted = plan(step, read)
        while must_collect(launched, wanted, sends_outputs=sends_outputs):
            done.append(f"collect {launched.pop(0).step_id}")
        done.append(f"launch {step}")
        launched.append(wanted)
    return done + [f"collect {each.step_id}" for each in launched]


def test_one_stage_is_always_one_step_ahead() -> None:
    """Though each step reads the token of the one before: it does so on the device."""
    assert order([-1, 0, 1, 2], sends_outputs=False) == [
        "launch 0",
        "launch 1",
        "collect 0",
        "launch 2",
        "collect 1",
        "launch 3",
        "collect 2",
        "collect 3",
    ]


def test_the_last_of_two_stages_is_ahead_where_two_requests_take_turns() -> None:
    assert order([-1, -1, 0, 1, 3], sends_outputs=True) == [
        "launch 0",
        "launch 1",
        "collect 0",
        "launch 2",
        "collect 1",
        "launch 3",
        "collect 2",
        "collect 3",
        "launch 4",
        "collect 4",
    ]


@given(st.data())
def test_any_order_is_sound(data: st.DataObject) -> None:
    """Steps are launched and collected in order, at most two are on their way, and the last stage
    never waits for a step whose input it holds back itself."""
    reads = [data.draw(st.integers(-1, step - 1)) for step in range(data.draw(st.integers(1, 12)))]
    done = order(reads, sends_outputs=True)
    for kind in ("launch", "collect"):
        steps = [int(each.split()[1]) for each in done if each.startswith(kind)]
        assert steps == list(range(len(reads)))
    for step, read in enumerate(reads):
        before = done[: done.index(f"launch {step}")]
        assert read < 0 or f"collect {read}" in before
        ahead = sum("launch" in each for each in before) - sum("collect" in each for each in before)
        assert ahead < DEPTH


def test_orders_wait_behind_the_last_push_of_their_transfer() -> None:
    launched = [plan(3, -1, "t", "u"), plan(4, -1, "t"), plan(5)]
    assert [behind(t, launched) for t in ("t", "u", "v")] == [4, 3, None]


def test_what_is_over_needs_no_wait() -> None:
    assert OVER.fired
    OVER.wait()
