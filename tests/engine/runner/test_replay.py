"""Decode steps that are replayed: by which graph, on which inputs, and that no token changes.

A fake captures: its replay runs the body again, and leaves the result where the first run did.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs
from pds_engine.config import EngineConfig
from pds_engine.kv.pool import KvPool
from pds_engine.messages import Row, Sampling, StepPlan
from pds_engine.models.loader import load
from pds_engine.parallel.collectives import ALONE
from pds_engine.runner.batch import build
from pds_engine.runner.replay import CudaCapture, Inputs, size_of, sizes
from pds_engine.runner.runner import Runner
from pds_engine.sizing import kv_format, kv_shard
from pds_kernels.paged_attention import Geometry, Kernel, dispatch, reference
from pds_kernels.plan import AttentionPlan
from runner_driver import Driver
from torch import Tensor

PROMPTS = ((5, 9, 2, 31, 7, 7, 12), (3, 1, 4, 1, 5), tuple(range(40, 70)))
OPTIONS = (
    Sampling(max_tokens=6, temperature=0.0),
    Sampling(max_tokens=9, temperature=0.8, logprobs=2),
    Sampling(max_tokens=4, temperature=0.7, frequency_penalty=0.4),
)


def test_sizes_of_graphs() -> None:
    assert sizes(1) == (1,)
    assert sizes(4) == (1, 2, 4)
    assert sizes(64) == (1, 2, 4, 8, 16, 24, 32, 48, 64)
    assert sizes(100) == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 100)
    assert len(sizes(4096)) == 21


def plan(*lengths: int) -> StepPlan:
    rows = tuple(
        Row(slot=slot, gen=1, start=9, length=length, samples=True)
        for slot, length in enumerate(lengths)
    )
    tokens = sum(lengths)
    return StepPlan(step_id=0, rows=rows, expects_output=False, depends_on=-1, padded_tokens=tokens)


@pytest.mark.parametrize(
    ("lengths", "size"),
    [
        ((1,), 1),
        ((1, 1, 1), 4),
        ((1,) * 8, 8),
        ((1,) * 9, None),  # more rows than the largest graph has
        ((1, 2), None),  # a chunk
        ((), None),  # an idle batch
    ],
)
def test_which_graph_a_step_replays(lengths: tuple[int, ...], size: int | None) -> None:
    assert size_of(plan(*lengths), (1, 2, 4, 8)) == size


class FakeCapture:
    """Counts the replays of each graph, by its number of tokens."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.replays: list[int] = []
        self._places: list[Tensor] = []

    @torch.inference_mode()
    def spoil(self) -> None:
        """Write over all results, as other replays do."""
        for place in self._places:
            place.fill_(float("nan"))

    def __call__(self, body: Callable[[], Tensor]) -> Callable[[], Tensor]:
        place = body()
        self.captured.append(len(place))
        self._places.append(place)

        def replay() -> Tensor:
            self.replays.append(len(place))
            return place.copy_(body())

        return replay


class RepeatedReference:
    """pds_kernels.plan.Repeated by the definition: its host part changes with each step, so only a
    fake can replay it."""

    def __init__(self, geometry: Geometry, place: AttentionPlan) -> None:
        self._geometry, self._place = geometry, place
        self.fill(replace(place, seq_lens_host=(), cu_seqlens_q_host=(0,)))

    def fill(self, plan: AttentionPlan) -> None:
        requests, place = len(plan.seq_lens_host), self._place
        self._now = reference.prepare(
            self._geometry,
            replace(
                plan,
                page_table=place.page_table[:requests],
                seq_lens=place.seq_lens[:requests],
                cu_seqlens_q=place.cu_seqlens_q[: requests + 1],
                write_slots=place.write_slots,
            ),
        )

    def attend(self, *given: Tensor) -> Tensor:
        return self._now(*given)


class Repeating:
    """pds_kernels.plan.Repeats."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry

    def __call__(self, plan: AttentionPlan) -> Callable[..., Tensor]:
        return reference.prepare(self._geometry, plan)

    def repeated(self, plan: AttentionPlan) -> RepeatedReference:
        return RepeatedReference(self._geometry, plan)


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("reference", serves=lambda geometry: True, make=Repeating)
    monkeypatch.setattr(dispatch, "KERNELS", (kernel,))


def answers(driver: Driver) -> tuple[list[Sequence[int]], list[float]]:
    """Tokens, and log-probabilities."""
    found = driver.run(PROMPTS, OPTIONS, seeds=(1, 2, 3), chunk=20)
    chances = [one.chosen for request in found for one in request.chances if one is not None]
    return [request.output for request in found], chances


@pytest.mark.usefixtures("repeats")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_steps_that_are_replayed_give_the_same_tokens(
    family: str, request: pytest.FixtureRequest
) -> None:
    """Prompts take two steps, then three requests decode, two, and one."""
    path = request.getfixturevalue(family)
    tokens, chances = answers(Driver(path, poison=False))
    driver, fake = Driver(path, poison=False), FakeCapture()
    graphs = driver.runner.capture(fake)
    assert list(reversed(fake.captured)) == list(graphs) == [1, 2, 4, 8, 16]
    found = answers(driver)
    assert found == (tokens, pytest.approx(chances, abs=1e-4))  # products round by their shapes
    # A step with a chunk is launched; so three decode alone only from the third step on.
    assert fake.replays == [4] * 3 + [2] + [1] * 3


@pytest.mark.usefixtures("repeats")
def test_the_stages_of_a_pipeline_replay_too(qwen3: Path) -> None:
    """Hidden states that are still being sent are not written over by the next replay."""

    def run(capture: FakeCapture | None) -> list[tuple[int, ...]]:
        stages = [
            Driver(qwen3, pp_rank=rank, parallelism={"pp": 2}, poison=False) for rank in range(2)
        ]
        for stage in stages:
            stage.admit(0, PROMPTS[0], OPTIONS[0], 0)
            stage.admit(1, PROMPTS[1], OPTIONS[0], 0)
            if capture is not None:
                stage.runner.capture(capture)
        first, last = (stage.runner for stage in stages)
        found = []
        for step in range(4):
            rows = tuple(
                Row(
                    slot=slot,
                    gen=slot + 1,
                    start=len(prompt) + step - 1 if step else 0,
                    length=1 if step else len(prompt),
                    samples=True,
                )
                for slot, prompt in enumerate(PROMPTS[:2])
            )
            tokens = sum(row.length for row in rows)
            one = StepPlan(
                step_id=step, rows=rows, expects_output=True, depends_on=-1, padded_tokens=tokens
            )
            sent = first.launch(one, None).hidden
            assert sent is not None and len(sent) == tokens
            kept = sent.clone()
            if capture is not None:
                capture.spoil()
            torch.testing.assert_close(sent, kept, rtol=0, atol=0)
            done = last.launch(one, sent).collect()
            assert done is not None
            first.accept(one, done.tokens)
            found.append(done.tokens)
        return found

    fake = FakeCapture()
    assert run(fake) == run(None)
    assert fake.replays == [2] * 6


def test_what_a_step_writes_for_its_graph(llama: Path) -> None:
    """Two requests in a graph of four tokens: padding is written to the null page."""
    driver = Driver(llama, poison=False)
    first, second = (driver.admit(slot, PROMPTS[slot], OPTIONS[0], 0) for slot in range(2))
    tables = driver.runner._tables
    tables.last_token[:2] = torch.tensor([88, 99])
    rows = tuple(
        Row(slot=at, gen=request.gen, start=len(request.prompt), length=1, samples=True)
        for at, request in enumerate((first, second))
    )
    one = structs.replace(plan(1, 1), rows=rows)
    null = tables.null_page
    inputs = Inputs.made(8, tables.pages.shape[1], null * 16, torch.empty(0, 5)).of(4)
    inputs.write(build(one, tables, 4), torch.ones(2, 5))
    assert inputs.tokens.tolist() == [99, 88, 0, 0]  # the shorter context first
    assert inputs.positions.tolist() == [5, 7, 0, 0]
    pages = [int(tables.pages[slot, 0]) for slot in (1, 0)]
    assert inputs.attention.page_table[:2, 0].tolist() == pages
    assert inputs.attention.seq_lens[:2].tolist() == [6, 8]
    assert inputs.attention.cu_seqlens_q.tolist() == [0, 1, 2, 3, 4]
    written = [pages[0] * 16 + 5, pages[1] * 16 + 7, null * 16, null * 16]
    assert inputs.attention.write_slots.tolist() == written
    assert inputs.hidden.sum(1).tolist() == [5, 5, 0, 0]


def test_where_the_host_works_out_the_launches_nothing_is_captured(llama: Path) -> None:
    """The definition of attention reads the host's lengths."""
    fake = FakeCapture()
    assert Driver(llama).runner.capture(fake) == ()
    assert fake.captured == []


@pytest.mark.gpu
def test_graphs_of_a_gpu_give_the_same_tokens(llama: Path) -> None:
    def run(*, graphs: bool) -> list[tuple[int, ...]]:
        config = EngineConfig.model_validate({"model": {"path": llama}, "max_model_len": 64})
        decoder = load(config, 0, torch.device("cuda"), ALONE)
        kv = kv_format(config, decoder.spec)
        pool = KvPool(kv, kv_shard(kv, decoder.part), 40, "cuda")
        layers = [pool.layer(at) for at in range(len(decoder.layers))]
        driver = Driver(llama)
        driver.runner = Runner(config, decoder, layers)
        if graphs:
            assert driver.runner.capture(CudaCapture()) == sizes(config.scheduler.max_running)
        driver.free = list(range(39))
        return [tuple(each.output) for each in driver.run(PROMPTS, OPTIONS, seeds=(1, 2, 3))]

    assert run(graphs=True) == run(graphs=False)
