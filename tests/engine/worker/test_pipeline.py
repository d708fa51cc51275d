"""Groups of several stages, each a real process on gloo: their tokens, and what they exchange."""

import os
import signal

import pytest
from pds_engine.messages import Cancel, Source

pytestmark = pytest.mark.slow


def texts(found):
    return {name: [token.token for token in told] for name, told in found.items()}


def quiet(group):
    """The state once nothing is in flight, and every rank has told of all its steps."""
    state = group.await_state(
        lambda state: (
            state.in_flight == 0
            and len(state.traffic) == (group.ranks if group.ranks > 1 else 0)
            and all(each.steps == state.steps_done for each in state.traffic)
        )
    )
    assert (state.kv_used, state.transfers_in_flight, state.kv_quarantined) == (0, 0, 0)
    return state


@pytest.mark.parametrize(
    ("pp", "settings"),
    [
        (2, {}),
        (2, {"pipeline__skip_output": False}),
        (2, {"parallelism__layers": (3, 1), "scheduler__chunk_size": 16}),
        (3, {}),
        (4, {}),
    ],
)
def test_stages_give_the_tokens_of_the_whole_model(
    start, shaped, greedy, prompt, submit, pp, settings
):
    """Long prompts in chunks, beside short ones that decode meanwhile."""
    group = start(shaped(parallelism__pp=pp, **settings), "pipe")
    group.await_ready()
    asked = {f"r{seed}": prompt(length, seed) for seed, length in enumerate((1, 16, 33, 100, 190))}
    found = group.collect(*(submit(name, ids, 12) for name, ids in asked.items()))
    assert texts(found) == {name: greedy(ids, 12) for name, ids in asked.items()}
    again = group.collect(submit("again", asked["r4"], 5))
    assert texts(again) == {"again": greedy(asked["r4"], 5)}
    quiet(group)


HOT = {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2, "logprobs": 2}


def test_seeded_sampling_does_not_depend_on_the_stages(start, shaped, prompt, submit):
    found = []
    for pp in (1, 2):
        group = start(shaped(parallelism__pp=pp), f"pp{pp}")
        group.await_ready()
        asked = [submit(f"r{n}", prompt(40, n), 10, HOT, seed=n) for n in range(4)]
        found.append(group.collect(*asked))
        group.close()
    assert texts(found[0]) == texts(found[1])
    for name, told in found[0].items():
        chances = [token.logprobs.chosen for token in told]
        assert chances == pytest.approx([t.logprobs.chosen for t in found[1][name]], abs=1e-4)


KINDS = [
    # What is asked (prompt's length, tokens), and how many outputs the stages then exchange.
    ("a prompt of five chunks, one token", [(160, 1)], 0),
    ("a prompt of five chunks, three tokens", [(160, 3)], 2),
    ("decoding", [(8, 20)], 19),
    ("chunks of one beside decoding of another", [(8, 12), (160, 1)], 11),
]


@pytest.mark.parametrize("skip", [True, False])
def test_messages_between_stages_are_those_of_the_plans(start, shaped, prompt, submit, skip):
    """Both ends counted, for one kind of batch after another."""
    group = start(shaped(parallelism__pp=3, pipeline__skip_output=skip), "count")
    group.await_ready()
    before = (0, 0)
    for number, (kind, asked, outputs) in enumerate(KINDS):
        group.collect(
            *(submit(f"{number}.{n}", prompt(*ask[:1], n), ask[1]) for n, ask in enumerate(asked))
        )
        state = quiet(group)
        first, middle, last = state.traffic
        steps = state.steps_done
        assert [each.hidden_sent for each in state.traffic] == [steps, steps, 0], kind
        assert [each.hidden_received for each in state.traffic] == [0, steps, steps], kind
        assert {each.outputs_expected for each in state.traffic} == {first.outputs_received}, kind
        assert last.outputs_sent == first.outputs_received, kind
        assert (middle.outputs_sent, middle.outputs_received) == (0, 0), kind
        assert last.outputs_sent - before[1] == (outputs if skip else steps - before[0]), kind
        before = (steps, last.outputs_sent)


def test_a_cancelled_request_leaves_both_ends_in_step(start, shaped, greedy, prompt, submit):
    group = start(shaped(parallelism__pp=2), "cancel")
    group.await_ready()
    group.link.send(submit("gone", prompt(20, 1), 200))
    group.tokens("gone", 3)
    group.link.send(Cancel(request_id="gone"))
    first, last = quiet(group).traffic
    assert first.outputs_expected == first.outputs_received == last.outputs_sent > 3
    ids = prompt(70, 2)
    assert texts(group.collect(submit("next", ids, 6))) == {"next": greedy(ids, 6)}


@pytest.mark.parametrize(("p", "d"), [(2, 1), (1, 2), (3, 2)])
def test_a_prompt_is_handed_over_between_unlike_layouts(
    start, shaped, greedy, prompt, submit, p, d
):
    prefill = start(shaped(role="prefill", parallelism__pp=p), "prefill")
    decode = start(shaped(role="decode", parallelism__pp=d), "decode")
    prefill.await_ready()
    decode.await_ready()
    ids = prompt(107, 9)
    expected = greedy(ids, 10)
    source = Source(address=f"127.0.0.1:{prefill.port}", group="prefill")
    prefill.link.send(submit("r", ids, 10, role_hint="prefill"))
    decode.link.send(submit("r", ids, 10, role_hint="decode", source=source))
    assert prefill.tokens("r", 1) == expected[:1]
    assert decode.tokens("r", 10) == expected
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


def test_a_rank_that_does_not_come_is_named(start, shaped):
    group = start(shaped(parallelism__pp=3, join_timeout=6), "absent", absent=(1,))
    said = group.ends(30)
    assert "rank 1 (stage 1) did not join in 6 s; 2 of 3 ranks are here" in said
