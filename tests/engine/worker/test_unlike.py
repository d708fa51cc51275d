"""Hand-over between groups that split the model unlike each other, by heads and by layers."""

import pytest
from pds_engine.messages import Source

pytestmark = pytest.mark.slow

PAIRS = [
    ({"tp": 2}, {"pp": 2}),
    ({"tp": 2}, {}),
    ({"pp": 2, "tp": 2}, {"pp": 2}),
    ({"tp": 2}, {"pp": 2, "tp": 2}),
]
"""Beside those of test_pipeline.py."""


def idle(group):
    """The state once neither requests nor transfers are left, and all pages are back."""
    state = group.await_state(
        lambda state: not (state.in_flight or state.transfers_in_flight or state.kv_used)
    )
    assert state.kv_quarantined == 0
    return state


@pytest.mark.parametrize(("number", "p", "d"), [(n, *pair) for n, pair in enumerate(PAIRS)])
def test_a_chat_is_handed_over_from_page_to_page(
    running, shaped, greedy, logprobs, prompt, submit, number, p, d
):
    """Each side takes what it has from its own prefix cache, and no more is sent than D lacks."""
    prefill, decode = (
        running(shaped(role=role, **{f"parallelism__{axis}": n for axis, n in split.items()}))
        for role, split in (("prefill", p), ("decode", d))
    )
    source = Source(address=f"127.0.0.1:{prefill.port}", group=prefill.name)
    first = prompt(100, 50 + number)
    second = (*first, *greedy(first, 30), *prompt(9, 60 + number))
    hits = []
    for turn, ids, scores, cached in (
        ("new", first, 0, 0),
        ("again", first, None, 96),
        ("goes-on", second, None, 96),
    ):
        request, options = f"{turn}-{number}", {"logprobs": 1, "prompt_logprobs": scores}
        prefill.link.send(submit(request, ids, 30, options, role_hint="prefill"))
        decode.link.send(submit(request, ids, 30, options, role_hint="decode", source=source))
        expected, table = greedy(ids, 30), logprobs((*ids, *greedy(ids, 30)))
        (given,), sent = prefill.answer(request, 1), decode.answer(request, 30)
        assert (given.token, given.cached_tokens) == (expected[0], cached)
        assert [token.token for token in sent] == expected
        found = [score.chosen for score in sent[0].prompt_logprobs]
        found += [token.logprobs.chosen for token in sent]
        start = 0 if scores == 0 else len(ids) - 1
        places = list(zip(table[start:], [*ids, *expected][start + 1 :], strict=False))
        assert found == pytest.approx([row[token].item() for row, token in places], abs=1e-4)
        idle(prefill)
        hits.append(idle(decode).prefix_hit_tokens)
    # P has the prompt alone, D the answer too.
    assert [hit - hits[0] for hit in hits[1:]] == [96, 96 + 128]


def test_many_prompts_at_once_are_handed_over(running, shaped, greedy, prompt, submit):
    """More than either side has slots for, of many chunks and of one."""
    prefill = running(shaped(role="prefill", parallelism__tp=2))
    decode = running(shaped(role="decode", parallelism__pp=2))
    source = Source(address=f"127.0.0.1:{prefill.port}", group=prefill.name)
    asked = {
        f"many-{at}": prompt(length, 70 + at) for at, length in enumerate((1, 190, 16, 65, 33, 128))
    }
    for request, ids in asked.items():
        prefill.link.send(submit(request, ids, 10, role_hint="prefill"))
    found = decode.collect(
        *(submit(name, ids, 10, role_hint="decode", source=source) for name, ids in asked.items())
    )
    tokens = {request: [token.token for token in sent] for request, sent in found.items()}
    assert tokens == {request: greedy(ids, 10) for request, ids in asked.items()}
    idle(decode)
    idle(prefill)
