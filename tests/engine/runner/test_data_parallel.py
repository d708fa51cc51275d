"""Attention on each dp rank by itself, the MLP on all of them: the tokens are transformers'."""

import pytest
import torch
from dp_driver import Load, passes, plans, run
from grid import on_grid
from pds_engine.errors import ProtocolError
from pds_engine.messages import Row, Sampling, StepPlan
from pds_engine.models.pieces import Pieces
from pds_engine.parallel.collectives import Collectives
from runner_driver import Driver

OUTPUT = 6


def prompts(seed: int, *lengths: int) -> list[list[int]]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 320, (n,), generator=source).tolist() for n in lengths]


BUSY = Load(prompts(1, 1, 16, 33, 70, 41), chunk=32, budget=75)
"""Chunks of several prompts beside decode rows."""
SHORT = Load(prompts(2, 5, 9), arrives=2)
LONG = Load(prompts(3, 130), chunk=48)
ONE = Load(prompts(4, 17))
IDLE = Load()
LOADS = {
    "one is busy": (BUSY, IDLE),
    "the other is": (IDLE, BUSY),
    "all are": (BUSY, LONG),
    "one comes late": (LONG, SHORT),
}


@pytest.mark.parametrize("even", [False, True], ids=["as they are", "even"])
@pytest.mark.parametrize("name", LOADS)
@pytest.mark.parametrize("tp", [1, 2])
def test_two_dp_ranks(tp, name, even, qwen3, reference):
    """Even: an idle dp rank has as many tokens of padding as the other has tokens; else none."""
    check(tp, LOADS[name], even, qwen3, reference)


@pytest.mark.parametrize("even", [False, True], ids=["as they are", "even"])
def test_four_dp_ranks(even, qwen3, reference):
    check(1, (IDLE, BUSY, ONE, LONG), even, qwen3, reference)


@pytest.mark.parametrize("tp", [1, 2])
def test_one_dp_rank(tp, qwen3, reference):
    check(tp, (BUSY,), False, qwen3, reference)


@pytest.mark.parametrize("even", [False, True], ids=["as they are", "even"])
@pytest.mark.parametrize(("tp", "loads"), [(1, (BUSY, LONG)), (2, (IDLE, BUSY))])
def test_latent_attention(tp, loads, even, models, reference):
    """Each dp rank has the latents of its own requests, on all its shards."""
    check(tp, loads, even, models["DeepseekV3ForCausalLM"], reference)


@pytest.mark.parametrize(
    "name", ["Olmo2ForCausalLM", "Gemma3ForCausalLM", "GptOssForCausalLM", "Phi3ForCausalLM"]
)
def test_other_layers_than_llama_s(name, models, reference):
    """Norms over all heads of a dp rank's shards, norms behind the MLP that all share, windows."""
    check(2, (IDLE, BUSY), False, models[name], reference)


def check(tp, loads, even, path, reference):
    def work(attention: Collectives, stage: Collectives) -> list[list[int]]:
        driver = Driver(path, collectives=attention, stage=stage)
        answers = run(driver, loads, OUTPUT, even=even)
        if not loads[stage.rank // tp].prompts:
            assert driver.pool[:-1].isnan().all(), "an idle rank has written to its pages"
        assert driver.pool[-1].isfinite().all(), "padding may read the page that nobody holds"
        return answers

    found = on_grid(tp, len(loads), work)
    for rank, answers in enumerate(found):
        asked = loads[rank // tp].prompts
        assert answers == [reference(path, prompt, OUTPUT) for prompt in asked]


def test_the_passes_are_those_that_the_tests_mean():
    """Idle batches with and without tokens, chunks beside decode rows, even and uneven sizes."""
    load = Load(prompts(0, 3, 70), chunk=32, budget=40)
    assert [[(p.request, p.start, p.length) for p in parts] for parts in passes(load, 3)] == [
        [(0, 0, 3), (1, 0, 32)],
        [(0, 3, 1), (1, 32, 32)],
        [(0, 4, 1), (1, 64, 6)],
        [(1, 70, 1)],
        [(1, 71, 1)],
    ]
    shapes = [tokens for _, tokens in plans((load, IDLE), 3, 2, even=False)]
    assert shapes == [(36, 0), (34, 0), (8, 0), (2, 0), (2, 0)]
    shapes = [tokens for _, tokens in plans((load, SHORT), 3, 2, even=True)]
    assert shapes == [(36, 36), (34, 34), (14, 14), (2, 2), (2, 2)]


# ---- padding has a consumer --------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_tokens_that_are_not_padded_are_refused_and_nobody_hangs(tokens, qwen3):
    """The mutant `padded_tokens = tokens` of the scheduler, at dp 1 with two shards."""

    def work(ranks: Collectives, _: Collectives) -> str:
        driver = Driver(qwen3, collectives=ranks)
        (prompt,) = prompts(5, tokens)
        driver.admit(0, prompt, Sampling(max_tokens=1, temperature=0.0), 0)
        row = Row(slot=0, gen=1, start=0, length=tokens, samples=True)
        plan = StepPlan(
            step_id=0,
            rows=(row,),
            expects_output=False,
            depends_on=-1,
            padded_tokens=tokens,
        )
        with pytest.raises(ProtocolError) as raised:
            driver.runner.launch(plan, None)
        return raised.value.message

    says = (
        f"step 0 is padded to {tokens} tokens, which 2 ranks of attention cannot share out evenly"
    )
    assert on_grid(2, 1, work) == [says] * 2


class Counting(Pieces):
    """Notes how many tokens it joins at once."""

    def __init__(self, eager: Pieces, held: set[int]) -> None:
        super().__init__(eager.shape, eager.ops)
        self.held = held

    def join(self, x, y, out_norm, in_norm):
        self.held.add(len(x))
        return super().join(x, y, out_norm, in_norm)


@pytest.mark.parametrize("tokens", [1, 3, 17])
def test_each_rank_holds_its_part_of_the_padded_tokens(tokens, qwen3, reference):
    def work(ranks: Collectives, _: Collectives) -> tuple[int, list[int]]:
        driver, held = Driver(qwen3, collectives=ranks), set[int]()
        eager = driver.decoder.pieces
        driver.decoder.use({each.shape: Counting(each, held) for each in eager})
        (answer,) = driver.run(prompts(5, tokens), Sampling(max_tokens=1, temperature=0.0))
        (rows,) = held
        return rows, answer.output

    expected = reference(qwen3, prompts(5, tokens)[0], 1)
    assert on_grid(2, 1, work) == [((tokens + 1) // 2, expected)] * 2
