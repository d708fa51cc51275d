"""Stages of several shards, each a real process on gloo: their tokens are the whole model's."""

from itertools import count

import pytest

pytestmark = pytest.mark.slow

_numbers = count()
SPLITS = [{"tp": 2}, {"tp": 2, "pp": 2}]
LENGTHS = (1, 16, 33, 100, 190)


def asked(prompt):
    return {f"t{next(_numbers)}": prompt(length, n) for n, length in enumerate(LENGTHS)}


def layout(shaped, tp=1, pp=1):
    return shaped(parallelism__tp=tp, parallelism__pp=pp)


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_shards_give_the_tokens_of_the_whole_model(running, shaped, greedy, prompt, submit, split):
    group, requests = running(layout(shaped, **split)), asked(prompt)
    found = group.collect(*(submit(name, ids, 12) for name, ids in requests.items()))
    tokens = {name: [token.token for token in sent] for name, sent in found.items()}
    assert tokens == {name: greedy(ids, 12) for name, ids in requests.items()}


KINDS = [
    {"temperature": 0.9, "logprobs": 2},
    {"temperature": 0.9, "top_p": 0.9, "repetition_penalty": 1.2, "logprobs": 0},
    {"temperature": 1.5, "top_k": 10, "logprobs": 1},
    {"temperature": 1.0, "min_p": 0.05, "presence_penalty": 0.5, "logprobs": 3},
    {"temperature": 0.0, "prompt_logprobs": 2, "logprobs": 2},
]


@pytest.mark.parametrize("split", SPLITS, ids=str)
def test_sampling_does_not_depend_on_the_layout(running, shaped, prompt, submit, split):
    """Tokens are equal, and log-probabilities close: the prompt's too, chunk by chunk."""
    answers = []
    for keys in ({}, split):
        group, requests = running(layout(shaped, **keys)), asked(prompt)
        found = group.collect(
            *(
                submit(name, ids, 10, kind, seed=at)
                for at, ((name, ids), kind) in enumerate(zip(requests.items(), KINDS, strict=True))
            )
        )
        answers.append([found[name] for name in requests])
    for whole, shards in zip(*answers, strict=True):
        assert [t.token for t in shards] == [t.token for t in whole]
        for ours, theirs in zip(shards, whole, strict=True):
            assert [i for i, _ in ours.logprobs.top] == [i for i, _ in theirs.logprobs.top]
            assert ours.logprobs.chosen == pytest.approx(theirs.logprobs.chosen, abs=1e-4)
            scores = [one.chosen for one in theirs.prompt_logprobs]
            found = [one.chosen for one in ours.prompt_logprobs]
            assert found == pytest.approx(scores, abs=1e-4)
    last = answers[1][-1]
    assert [len(token.prompt_logprobs) for token in last] == [LENGTHS[-1] - 1] + [0] * 9
