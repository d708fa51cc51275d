"""Decode steps as CUDA graphs: one for each of a few numbers of tokens, captured at start-up.

A graph is a list of launches with fixed shapes and addresses: the host starts all of it by one
call. So a step that replays one writes its inputs where the graph reads them, padded to the graph's
number of tokens. Which steps may, and by which graph, is decided here; what captures is injected.
(Gray, "Getting Started with CUDA Graphs", NVIDIA, 2019.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from pds_kernels.plan import AttentionPlan
from torch import Tensor

from pds_engine.messages import StepPlan
from pds_engine.runner.attention import Repeating
from pds_engine.runner.batch import Batch

Replay = Callable[[], Tensor]
"""Computes again, and returns what lies where the capture left it."""
Capture = Callable[[Callable[[], Tensor]], Replay]
"""Runs a body of launches once, and captures them."""


def sizes(most: int) -> tuple[int, ...]:
    """Numbers of tokens that have a graph, the smallest first: 1, 2, 4, 8, then each power of two
    and the middle up to the next one, and `most`. A step is padded by a half at most, from 16 on.
    """
    found = [1, 2, 4, 8]
    power = 16
    while power < most:
        found += [power, power * 3 // 2]
        power *= 2
    return (*(size for size in found if size < most), most)


def size_of(plan: StepPlan, graphs: Sequence[int]) -> int | None:
    """The smallest of `graphs` that holds `plan`. None: the step has a chunk, no row at all, or
    more rows than the largest, and is launched kernel by kernel."""
    if not plan.rows or any(row.length > 1 for row in plan.rows):
        return None
    return next((size for size in graphs if size >= len(plan.rows)), None)


@dataclass(frozen=True, slots=True)
class Inputs:
    """A step's inputs at fixed addresses, T tokens: views of the same tensors for every T."""

    tokens: Tensor
    """[T] int64, on the first stage."""
    positions: Tensor
    """[T] int64."""
    hidden: Tensor
    """[T, hidden], on the other stages."""
    attention: AttentionPlan
    """Room for T requests of one token each; its host's part is empty."""

    @classmethod
    def made(cls, most: int, pages: int, null_slot: int, hidden: Tensor) -> Self:
        """For steps of up to `most` tokens, of requests of up to `pages` pages.

        Args:
            null_slot: the place in the pages that padding is written to.
            hidden: [0, hidden], of the dtype and device of hidden states.
        """
        device = hidden.device

        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            tokens=zeros(most, dtype=torch.int64),
            positions=zeros(most, dtype=torch.int64),
            hidden=hidden.new_zeros(most, hidden.shape[1]),
            attention=AttentionPlan(
                page_table=zeros(most, pages, dtype=torch.int32),
                seq_lens=zeros(most, dtype=torch.int32),
                cu_seqlens_q=torch.arange(most + 1, dtype=torch.int32, device=device),
                write_slots=zeros(most, dtype=torch.int64).fill_(null_slot),
                seq_lens_host=(),
                cu_seqlens_q_host=(),
            ),
        )

    def of(self, tokens: int) -> Self:
        """The first `tokens` of them."""
        attention = self.attention
        return replace(
            self,
            tokens=self.tokens[:tokens],
            positions=self.positions[:tokens],
            hidden=self.hidden[:tokens],
            attention=replace(
                attention,
                page_table=attention.page_table[:tokens],
                seq_lens=attention.seq_lens[:tokens],
                cu_seqlens_q=attention.cu_seqlens_q[: tokens + 1],
                write_slots=attention.write_slots[:tokens],
            ),
        )

    def write(self, batch: Batch, hidden: Tensor | None) -> None:
        """What a step has of its own. `batch` is padded to as many tokens as there are here; its
        requests are fewer, and those past them have no work (`Repeating.fill`)."""
        ours, theirs = self.attention, batch.attention
        requests, pages = theirs.page_table.shape
        self.tokens.copy_(batch.tokens)
        self.positions.copy_(batch.positions)
        ours.page_table[:requests, :pages].copy_(theirs.page_table)
        ours.seq_lens[:requests].copy_(theirs.seq_lens)
        ours.write_slots.copy_(theirs.write_slots)
        if hidden is not None:
            self.hidden[: len(hidden)].copy_(hidden)


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: Inputs
    repeating: Repeating
    replay: Replay


class Graphs:
    """A rank's graphs of decode steps."""

    def __init__(
        self,
        inputs: Inputs,
        repeating: Callable[[AttentionPlan], Repeating],
        body: Callable[[Inputs, Repeating], Tensor],
        capture: Capture,
    ) -> None:
        """Capture a graph for each of `sizes`, the largest first: the smaller ones then find room
        in its memory."""
        self.sizes = sizes(len(inputs.tokens))
        self._graphs: dict[int, _Graph] = {}
        for size in reversed(self.sizes):
            own = inputs.of(size)
            attention = repeating(own.attention)

            def launches(own: Inputs = own, attention: Repeating = attention) -> Tensor:
                return body(own, attention)

            self._graphs[size] = _Graph(own, attention, capture(launches))

    def run(self, size: int, batch: Batch, hidden: Tensor | None) -> Tensor:
        """The hidden states of a step that is padded to `size`. They lie where the next replay
        leaves its own."""
        graph = self._graphs[size]
        graph.inputs.write(batch, hidden)
        graph.repeating.fill(batch.attention)
        return graph.replay()


class CudaCapture:
    """Captures on the current device; all graphs share one pool of memory, as they never run side
    by side."""

    _WARM = 2
    """Runs before the capture: libraries choose and load what they run, and kernels are compiled
    that were not planned."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def __call__(self, body: Callable[[], Tensor]) -> Replay:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            for _ in range(self._WARM):
                body()
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads (transfers, watchdogs) may call CUDA meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            out = body()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay
