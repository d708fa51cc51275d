"""Messages, by counting: what is sent and received is what the plans say, at both ends."""

from collections.abc import Callable
from typing import Any

import pytest
from bounds import bounded
from pds_engine.messages import Sampling, Submit
from pds_simulation.cluster import Cluster
from pds_simulation.events import Events
from pds_simulation.group import Group, Machine
from simulated import Ask, Simulate

CHUNK = 16


def expected(group: Group) -> list[int]:
    """The steps whose output the first stage is to have, as the plans say."""
    return [plan.step_id for plan in group.plans if plan.expects_output]


def check_both_ends(group: Group) -> None:
    steps = [plan.step_id for plan in group.plans]
    for wire in group.outputs:
        assert wire.sent == wire.received == expected(group)
    for stage in group.hidden:
        for wire in stage:
            assert wire.sent == wire.received == steps


@pytest.mark.parametrize(
    ("skip", "max_tokens", "outputs"), [(True, 2, 1), (True, 1, 0), (False, 2, 33)]
)
def test_a_prompt_of_256k_in_chunks_of_8k(
    simulate: Simulate, ask: Ask, skip: bool, max_tokens: int, outputs: int
):
    """32 chunks: one output message that is of use; none when no token follows the first."""
    group = simulate(
        pp=2,
        layers=1,
        page_size=256,
        pages=1025,
        chunk_size=8192,
        max_step_tokens=8192 + 80,
        skip_output=skip,
    )
    group.submit(ask("r", 262144, max_tokens=max_tokens))
    (answer,) = group.run()
    check_both_ends(group)
    assert len(group.plans) == 32 + max_tokens - 1
    assert len(answer.tokens) == max_tokens
    assert [len(wire.sent) for wire in group.outputs] == [outputs]
    # The 31 empty ones; that of the last step is taken by no step any more.
    assert group.workers[0].runner.reads.unneeded == (0 if skip else 31)


def test_a_prefill_group_sends_no_output_at_all():
    """Of the same prompt: its first token leaves the group with the hand-over."""
    cluster = Cluster(Events(), lambda: 0.1)
    for role, pp in (("prefill", 2), ("decode", 1)):
        settings = bounded(
            role=role,
            pp=pp,
            page_size=256,
            chunk_size=8192,
            max_step_tokens=8192 + 80,
            max_model_len=1 << 19,
            step_timeout=float("inf"),
        )
        cluster.add(settings, Machine(pages=1100, layers=2))
    sampling = Sampling(max_tokens=4)
    cluster.submit(
        Submit(request_id="r", prompt_ids=tuple(range(262144)), sampling=sampling, seed=1)
    )
    (answer,) = cluster.run()
    (group,) = cluster.prefill
    assert (len(group.plans), len(answer.tokens)) == (32, 4)
    check_both_ends(group)
    assert [len(wire.sent) for wire in group.outputs] == [0]


Put = Callable[[Group, Ask], None]
"""Puts requests to a group."""


def alone(**about: Any) -> Put:
    def put(group: Group, ask: Ask) -> None:
        group.submit(ask("r", **about))

    return put


def several(*requests: tuple[float, int, int]) -> Put:
    """When each comes, its prompt's length, and how many tokens it wants."""

    def put(group: Group, ask: Ask) -> None:
        for number, (at, prompt, max_tokens) in enumerate(requests):
            group.submit(ask(f"r{number}", prompt, max_tokens), at=at)

    return put


def cancelled(at: float) -> Put:
    def put(group: Group, ask: Ask) -> None:
        several((0.0, 6 * CHUNK, 3), (0.0, CHUNK, 3))(group, ask)
        group.cancel("r0", at=at)

    return put


def parked(group: Group, ask: Ask) -> None:
    """r0 is in mid-prefill; r1 comes, goes before it, and ends its prompt in a step without r0."""
    group.submit(ask("r0", 6 * CHUNK, 3, priority=5))
    group.submit(ask("r1", CHUNK, 3), at=2.5)


BATCHES: dict[str, tuple[Put, int | None]] = {
    "middle chunks": (alone(prompt=4 * CHUNK, max_tokens=2), 1),
    "one token": (alone(prompt=4 * CHUNK, max_tokens=1), 0),
    "last chunk": (alone(prompt=CHUNK, max_tokens=2), 1),
    "decode": (alone(prompt=1, max_tokens=4), 3),
    "logprobs": (alone(prompt=2 * CHUNK, max_tokens=2, logprobs=3), 1),
    "two prompts end in one step": (several((0.0, 8, 2), (0.0, 8, 2)), 1),
    "decodes beside middle chunks": (several((0.0, 8, 4), (0.0, 8 + 2 * CHUNK, 1)), 3),
    # sglang #26148: the receiver looked at the parked chunk, said "no last chunk", and appended 0.
    "parked chunk": (parked, None),
    "abort in mid-prefill": (cancelled(at=2.5), None),
    "abort after the last chunk": (cancelled(at=8.5), None),
}
"""What is asked, and how many steps have an output that a later step reads."""


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("pp", [2, 4])
@pytest.mark.parametrize("batch", BATCHES)
def test_sent_is_received_is_planned(simulate: Simulate, ask: Ask, batch: str, pp: int, tp: int):
    group = simulate(pp=pp, tp=tp)
    put, outputs = BATCHES[batch]
    put(group, ask)
    group.run()
    check_both_ends(group)
    if outputs is not None:
        assert len(expected(group)) == outputs


@pytest.mark.parametrize("batch", BATCHES)
def test_every_step_sends_when_nothing_is_skipped(simulate: Simulate, ask: Ask, batch: str):
    """For comparison alone; what was not sampled is marked, and reaches no slot."""
    group = simulate(pp=4, skip_output=False)
    BATCHES[batch][0](group, ask)
    group.run()
    check_both_ends(group)
    assert expected(group) == [plan.step_id for plan in group.plans]


def test_a_single_stage_exchanges_nothing(simulate: Simulate, ask: Ask):
    group = simulate(pp=1)
    several((0.0, 40, 5), (0.0, 3, 9))(group, ask)
    group.run()
    assert group.wires == [] and expected(group) == []
