"""Sampling: what may be drawn, how often, and that a row's draw is its own."""

import math

import pytest
import torch
from pds_engine.messages import Admit, Sampling
from pds_engine.parallel.collectives import ALONE, VocabShard
from pds_engine.runner.batch import Batch
from pds_engine.runner.candidates import bounds_of
from pds_engine.runner.result import Result
from pds_engine.runner.sampling import adjust, draw, kernel, logprobs, sample
from pds_engine.runner.sampling import choose as draw_freely
from pds_engine.runner.tables import HostSlot, Tables
from pds_kernels.sampler import nucleus

pytestmark = pytest.mark.usefixtures("each_sampler")
VOCAB = 12


def whole(logits: torch.Tensor) -> VocabShard:
    return VocabShard(range(logits.shape[1]), logits.shape[1], ALONE)


def options(**keys) -> Sampling:
    return Sampling(max_tokens=8, **keys)


def slot(sampling: Sampling, seed: int = 0) -> HostSlot:
    return HostSlot(0, 1, (0,), sampling, seed)


def tables_of(slots: int, vocab: int = VOCAB) -> Tables:
    return Tables(slots, 4, 16, vocab, 0, torch.device("cpu"))


def choose(logits: torch.Tensor, *requests: Admit, index: int = 0) -> list[int]:
    tables = tables_of(len(requests), logits.shape[1])
    rows = []
    for request in requests:
        tables.admit(request)
        rows.append((slot(request.sampling, request.seed), index))
    slots = torch.arange(len(requests))
    batch = Batch(slots, slots, None, slots, slots, tuple(rows))
    vocab = whole(logits)
    return sample(logits, batch, tables, vocab, kernel(vocab, logits.device)).tolist()


def admit(at: int, sampling: Sampling, prompt=(1,), output=(), seed=0) -> Admit:
    return Admit(
        slot=at,
        gen=0,
        prompt_ids=prompt,
        output_ids=output,
        sampling=sampling,
        seed=seed,
        pages=(0,),
    )


def test_greedy_takes_the_lowest_id_of_a_tie():
    logits = torch.tensor([[0.0, 3.0, 3.0], [1.0, 1.0, 1.0]])
    assert choose(logits, admit(0, options(temperature=0)), admit(1, options(temperature=0))) == [
        1,
        0,
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 100}, {0, 1, 2, 3}),
        ({"top_p": 0.5}, {0}),
        ({"top_p": 0.51}, {0, 1}),
        ({"top_p": 0.0}, {0}),
        ({"min_p": 0.5}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 2, "top_p": 0.7}, {0, 1}),  # of the two left, the first has 2/3
        ({"top_k": 2, "top_p": 0.6}, {0}),
    ],
)
def test_what_may_be_drawn(keys, expected):
    chances = torch.tensor([[0.5, 0.25, 0.15, 0.1]])
    bounds = bounds_of([options(**keys)], chances.device)
    allowed, covered = nucleus(chances.log(), None, bounds)
    assert set(allowed[0].nonzero().flatten().tolist()) == expected
    assert covered.tolist() == [True]


@pytest.mark.parametrize(
    ("keys", "expected", "covered"),
    [
        ({"top_k": 2}, {0, 1}, True),
        ({"top_k": 3}, {0, 1}, False),  # the third is not among the candidates
        ({"top_p": 0.7}, {0, 1}, True),
        ({"top_p": 0.8}, {0, 1}, False),  # they reach 0.75
        ({"top_p": 0.8, "min_p": 0.4}, {0, 1}, False),  # a third one might be as likely
        ({"top_p": 0.6, "min_p": 0.8}, {0}, True),  # min_p ends among the candidates
        ({"top_p": 0.6, "top_k": 3}, {0, 1}, False),  # the third one's chance is not known
    ],
)
def test_whether_the_candidates_are_all_that_may_be_drawn(keys, expected, covered):
    candidates, total = torch.tensor([[0.5, 0.25]]).log(), torch.tensor([2.0]).double()
    bounds = bounds_of([options(**keys)], candidates.device)
    allowed, found = nucleus(candidates, total, bounds)
    assert set(allowed[0].nonzero().flatten().tolist()) == expected
    assert found.tolist() == [covered]


def chi_square(drawn: torch.Tensor, chances: torch.Tensor) -> float:
    counts = torch.bincount(drawn, minlength=len(chances)).double()
    expected = chances.double() * len(drawn)
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_follow_the_softmax_at_its_temperature():
    torch.manual_seed(1)
    logits, temperature, count = torch.randn(VOCAB), 0.7, 20_000
    rows = [(slot(options(temperature=temperature), seed=11), index) for index in range(count)]
    vocab = whole(logits.unsqueeze(0))
    drawn = draw_freely(logits.expand(count, -1), rows, vocab, kernel(vocab, logits.device))
    # 11 degrees of freedom: above 31.3 once in a thousand seeds
    assert chi_square(drawn, (logits / temperature).softmax(-1)) < 31.3


def test_draws_within_top_p_follow_what_is_left():
    chances = torch.tensor([0.4, 0.3, 0.2, 0.1])
    rows = [(slot(options(top_p=0.75), seed=seed), 0) for seed in range(8000)]
    drawn = draw(chances.log().expand(8000, -1), rows, whole(chances.unsqueeze(0)))
    assert int(drawn.max()) == 2
    assert chi_square(drawn, torch.tensor([0.4, 0.3, 0.2]) / 0.9) < 13.8  # 2 degrees, 1 in 1000


def test_a_row_s_token_does_not_depend_on_its_batch():
    torch.manual_seed(2)
    logits = torch.randn(6, 500)
    kinds = [
        options(temperature=0.9),
        options(temperature=0),
        options(top_p=0.9),
        options(top_k=20, temperature=1.5),
        options(min_p=0.05),
        options(logit_bias={3: 2.5}, presence_penalty=0.4),
    ]
    requests = [admit(at, kind, seed=at * 77) for at, kind in enumerate(kinds)]
    together = choose(logits, *requests)
    alone = [
        choose(logits[at : at + 1], admit(0, kind, seed=at * 77))[0]
        for at, kind in enumerate(kinds)
    ]
    assert together == alone
    backwards = [admit(5 - at, kind, seed=at * 77) for at, kind in enumerate(kinds)][::-1]
    assert choose(logits.flip(0), *backwards)[::-1] == together


def plain_penalties(logits, prompt, output, sampling):
    """The definition, token by token."""
    scores = logits.tolist()
    for token in range(len(scores)):
        count = output.count(token)
        if count or token in prompt:
            factor = sampling.repetition_penalty
            scores[token] = scores[token] / factor if scores[token] > 0 else scores[token] * factor
        scores[token] -= sampling.presence_penalty * (count > 0)
        scores[token] -= sampling.frequency_penalty * count
    return torch.tensor(scores)


def test_penalties_against_their_definition():
    torch.manual_seed(3)
    logits, prompt, output = torch.randn(VOCAB), (1, 2, 2, 5), (2, 7, 7, 7, 9)
    kinds = [
        options(repetition_penalty=1.3),
        options(presence_penalty=0.7),
        options(frequency_penalty=-0.3),
        options(repetition_penalty=0.8, presence_penalty=-0.5, frequency_penalty=0.4),
    ]
    tables = tables_of(4)
    for at, kind in enumerate(kinds):
        tables.admit(admit(at, kind, prompt, output[:2]))
    for token in output[2:]:  # the later ones are counted as they are sampled
        tables.sampled(torch.arange(4), torch.full((4,), token))
    slots, found = torch.arange(4), logits.repeat(4, 1)
    rows = tuple((slot(kind), 5) for kind in kinds)
    restores = adjust(found, Batch(slots, slots, None, slots, slots, rows), tables, whole(found))
    for row, kind in zip(found, kinds, strict=True):
        torch.testing.assert_close(row, plain_penalties(logits, prompt, output, kind))
    for restore in restores:
        restore()
    assert torch.equal(found, logits.expand(4, -1))


def test_what_a_request_asks_for_changes_no_logits_for_good():
    """Log-probabilities are taken from them afterwards."""
    torch.manual_seed(9)
    logits = torch.randn(3, VOCAB)
    before = logits.clone()
    everything = options(
        logit_bias={3: 2.5, 4: -1.0}, presence_penalty=0.4, stop_token_ids=(1, 3), min_tokens=4
    )
    choose(logits, admit(0, everything, (1, 3), (3,)), admit(1, options()), admit(2, everything))
    assert torch.equal(logits, before)


def test_a_slot_s_penalties_start_afresh_with_the_next_request():
    tables = tables_of(1)
    tables.admit(admit(0, options(presence_penalty=1), (1, 2), (3,)))
    tables.release(0, 0)
    tables.admit(admit(0, options(presence_penalty=1), (4,)))
    prompted, counts = tables.penalty_tables()
    assert prompted[0].nonzero().flatten().tolist() == [4]
    assert not counts.any()


def test_logit_bias_and_min_tokens():
    logits = torch.zeros(1, VOCAB)
    logits[0, 4] = 1
    assert choose(logits, admit(0, options(temperature=0, logit_bias={7: 1.5, 99: 100.0}))) == [7]
    stops = options(temperature=0, stop_token_ids=(4, 99), min_tokens=2)
    assert choose(logits, admit(0, stops), index=1) == [0]
    assert choose(logits, admit(0, stops), index=2) == [4]


def test_logprobs_are_the_model_s_own():
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, 0.0], [5.0, 1.0, 1.0]])
    rows = [
        (slot(options(logprobs=2, temperature=0.1)), 0),
        (slot(options()), 0),
        (slot(options(logprobs=0)), 0),
    ]
    tokens = torch.tensor([2, 0, 0])
    result = Result(tokens, *logprobs(logits, tokens, rows, whole(logits)))
    first, second, third = result.read(step_id=0, elapsed=0.0).logprobs
    total = math.log(math.exp(1) + math.exp(3) + math.exp(2))
    assert first.chosen == pytest.approx(2 - total)
    assert [token for token, _ in first.top] == [1, 2]
    assert first.top[0][1] == pytest.approx(3 - total)
    assert second is None
    assert third.top == ()
