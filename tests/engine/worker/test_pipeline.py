"""Groups of several stages, each a real process on gloo: their tokens, and what they exchange."""

import os
import signal
from itertools import count, pairwise

import pytest
from pds_engine.messages import Cancel, Source

pytestmark = pytest.mark.slow

_numbers = count()


def name() -> str:
    """A request id that no other test of a shared group has."""
    return f"r{next(_numbers)}"


def texts(found):
    return {request: [token.token for token in sent] for request, sent in found.items()}


def quiet(group):
    """The state once nothing is in flight, and every rank has reported all its steps."""
    state = group.await_state(
        lambda state: (
            state.in_flight == 0
            and state.transfers_in_flight == 0
            and len(state.traffic) in (0, group.ranks)  # none of a single stage
            and all(each.steps == state.steps_done for each in state.traffic)
            # A rank may report a step before it has counted what it sent of it.
            and all(one.hidden_sent == to.hidden_received for one, to in pairwise(state.traffic))
            and sum(each.outputs_sent for each in state.traffic[-1:])
            == sum(each.outputs_received for each in state.traffic[:1])
        )
    )
    assert (state.kv_used, state.kv_quarantined) == (0, 0)
    return state


LAYOUTS = [
    {"pp": 2},
    {"pp": 2, "skip": False},
    {"pp": 2, "layers": (3, 1), "chunk": 16},
    {"pp": 3},
    {"pp": 4},
]


def layout(shaped, pp, *, skip=True, layers=None, chunk=32):
    return shaped(
        parallelism__pp=pp,
        parallelism__layers=layers,
        pipeline__skip_output=skip,
        scheduler__chunk_size=chunk,
    )


@pytest.mark.parametrize("keys_", LAYOUTS, ids=str)
def test_stages_give_the_tokens_of_the_whole_model(running, shaped, greedy, prompt, submit, keys_):
    """Long prompts in chunks, beside short ones that decode meanwhile."""
    group = running(layout(shaped, **keys_))
    asked = {name(): prompt(length, n) for n, length in enumerate((1, 16, 33, 100, 190))}
    found = group.collect(*(submit(request, ids, 12) for request, ids in asked.items()))
    assert texts(found) == {request: greedy(ids, 12) for request, ids in asked.items()}


HOT = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2, "logprobs": 2}


def test_seeded_sampling_does_not_depend_on_the_stages(running, shaped, prompt, submit):
    found = []
    for pp in (1, 2):
        asked = [submit(name(), prompt(40, n), 10, HOT, seed=n) for n in range(4)]
        found.append(list(running(layout(shaped, pp)).collect(*asked).values()))
    for one, other in zip(*found, strict=True):
        assert [token.token for token in one] == [token.token for token in other]
        chances = [token.logprobs.chosen for token in other]
        assert [token.logprobs.chosen for token in one] == pytest.approx(chances, abs=1e-4)


KINDS = {
    # What is asked (prompt's length, tokens), and how many outputs the stages then exchange.
    "a prompt of five chunks, one token": ([(160, 1)], 0),
    "a prompt of five chunks, three tokens": ([(160, 3)], 2),
    "decoding": ([(8, 20)], 19),
    "chunks beside decoding": ([(8, 12), (160, 1)], 11),
}


COUNTED = [(LAYOUTS[0], None), (LAYOUTS[0], 2), (LAYOUTS[1], 2), (LAYOUTS[3], None)]
"""Of the layouts, and of steps with scores or without: every two of their values."""


@pytest.mark.parametrize(("keys_", "scores"), COUNTED, ids=str)
def test_messages_between_stages_are_those_of_the_plans(
    running, shaped, prompt, submit, keys_, scores
):
    """Both ends counted, after one kind of batch after another."""
    group = running(layout(shaped, **keys_))
    group.collect(submit(name(), prompt(8, 1), 1))
    before = quiet(group)
    for kind, (asked, outputs) in KINDS.items():
        sampling = {"logprobs": scores}
        group.collect(
            *(submit(name(), prompt(size, next(_numbers)), want, sampling) for size, want in asked)
        )
        state = quiet(group)
        steps, (first, *middle, last) = state.steps_done, state.traffic
        sends = [steps] * (group.ranks - 1)
        assert [each.hidden_sent for each in state.traffic] == [*sends, 0], kind
        assert [each.hidden_received for each in state.traffic] == [0, *sends], kind
        assert {each.outputs_expected for each in state.traffic} == {last.outputs_sent}, kind
        assert first.outputs_received == last.outputs_sent, kind
        if keys_.get("skip", True):
            assert first.outputs_unneeded == before.traffic[0].outputs_unneeded, kind
        assert not any(each.outputs_sent or each.outputs_received for each in middle), kind
        sent = last.outputs_sent - before.traffic[-1].outputs_sent
        assert sent == (outputs if keys_.get("skip", True) else steps - before.steps_done), kind
        before = state


def test_a_cancelled_request_leaves_both_ends_in_step(running, shaped, greedy, prompt, submit):
    group = running(layout(shaped, 2))
    gone = name()
    group.link.send(submit(gone, prompt(20, 1), 200))
    group.tokens(gone, 3)
    group.link.send(Cancel(request_id=gone))
    first, last = quiet(group).traffic
    assert first.outputs_expected == first.outputs_received == last.outputs_sent > 0
    ids, request = prompt(70, 2), name()
    assert texts(group.collect(submit(request, ids, 6))) == {request: greedy(ids, 6)}


UNLIKE = [
    ({"pp": 2}, {"pp": 1}),
    ({"pp": 1}, {"pp": 2}),
    ({"pp": 3}, {"pp": 2}),
    ({"pp": 2}, {"tp": 2}),
]


@pytest.mark.parametrize(("number", "p", "d"), [(n, *pair) for n, pair in enumerate(UNLIKE)])
def test_a_prompt_is_handed_over_between_unlike_layouts(
    running, shaped, greedy, prompt, submit, number, p, d
):
    prefill, decode = (
        running(shaped(role=role, **{f"parallelism__{axis}": n for axis, n in split.items()}))
        for role, split in (("prefill", p), ("decode", d))
    )
    ids, request = prompt(107, number), name()
    expected = greedy(ids, 10)
    source = Source(address=f"127.0.0.1:{prefill.port}", group=prefill.name)
    prefill.link.send(submit(request, ids, 10, role_hint="prefill"))
    decode.link.send(submit(request, ids, 10, role_hint="decode", source=source))
    assert prefill.tokens(request, 1) == expected[:1]
    assert decode.tokens(request, 10) == expected
    # Whoever only computes prompts sends no output at all.
    assert all(each.outputs_sent == 0 for each in quiet(prefill).traffic)
    quiet(decode)


def test_a_killed_stage_is_named(start, shaped, prompt, submit):
    group = start(shaped(parallelism__pp=3), "killed")
    group.await_ready()
    group.link.send(submit("r", prompt(100, 1), 150))
    group.tokens("r", 1)
    group.workers[1].kill()
    assert "rank 1 (stage 1)" in group.ends(10)
    assert [worker.wait(10) for worker in group.workers] == [1, -signal.SIGKILL, 1]


def test_a_stopped_stage_is_named_within_the_time_out(start, shaped, prompt, submit):
    group = start(shaped(parallelism__pp=3, scheduler__step_timeout=4), "stopped")
    group.await_ready()
    group.link.send(submit("r", prompt(100, 1), 150))
    group.tokens("r", 1)
    os.kill(group.workers[1].pid, signal.SIGSTOP)
    said = group.ends(12)
    assert "stage_timeout" in said
    assert "rank 1 (stage 1) was" in said
    assert "when it fell silent" in said
    for rank in range(3):
        assert f"rank {rank} (stage {rank}) was" in said
