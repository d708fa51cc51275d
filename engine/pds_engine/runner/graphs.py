"""The compiled form of a layer's pieces, and the list of what a rank will run.

The list is the warm-up's shape plan. All layers share their shapes, so two graphs (three where a
stage has several ranks) serve every layer of a stage; a graph takes any number of tokens up to a
bound far above a step's, so that roles, settings and shards share it too: the pods of a whole
PDServing compile two or three graphs between them.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pds_kernels import graph as aot
from pds_kernels.cache import Artefact, Cache
from pds_kernels.graph import Graph
from torch import Tensor

from pds_engine.config import EngineConfig
from pds_engine.layers import block, mlp, norm, rope
from pds_engine.layers.block import Shape
from pds_engine.layers.mlp import swiglu
from pds_engine.models.decoder import LayerWeights, Pieces, shape_of
from pds_engine.models.loader import DTYPES, compute_dtype
from pds_engine.parallel.layout import ModelPart
from pds_engine.spec import DecoderSpec

KIND = "inductor"
_BOUND = 1 << 16
"""Tokens in a step that every graph takes; more where a configuration asks for more."""
_LEAST = 2  # torch.export specialises a dimension of one
_Input = tuple[tuple[int, ...], torch.dtype]
_SOURCES = tuple(Path(module.__file__ or "") for module in (block, mlp, norm, rope))


def plan(
    config: EngineConfig, spec: DecoderSpec, part: ModelPart, device: torch.device
) -> tuple[Graph, ...]:
    """Every graph that a rank with this part will run: the pieces before and after attention."""
    scheduler = config.scheduler
    step = scheduler.max_step_tokens or scheduler.chunk_size + scheduler.max_running
    longest = max(step + config.parallelism.tp, scheduler.max_running) * config.parallelism.dp
    tokens = max(_BOUND, 1 << longest.bit_length())
    dtype = compute_dtype(DTYPES[config.model.dtype], device)
    return _Plan(spec, part, tokens, dtype).graphs()


def fetch(graph: Graph, cache: Cache, timeout: float) -> Artefact:
    """The compiled `graph`, built here if nobody has."""
    folder = functools.partial(aot.build, graph)
    return cache.get(KIND, graph.key_inputs(), folder, timeout=timeout)


class CompiledPieces(Pieces):
    """The pieces run by compiled graphs, `loaded` by the names of `plan`."""

    def __init__(self, shape: Shape, loaded: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(shape)
        self._loaded = loaded

    def before(self, x: Tensor, rope: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._run("before", (x, rope), w.input_norm, w.qkv, w.qkv_bias, w.qk_norm)
        return q, k, v

    def after(self, x: Tensor, attended: Tensor, w: LayerWeights) -> Tensor:
        (out,) = self._run("after", (x, attended), w.out, w.post_norm, w.gate_up, w.down)
        return out

    def heads(self, x: Tensor, rope: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._run("heads", (x, rope), w.qkv, w.qkv_bias, w.qk_norm)
        return q, k, v

    def join(self, x: Tensor, y: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        joined, normed = self._run("join", (x, y), norm)
        return joined, normed

    def feed(self, x: Tensor, w: LayerWeights) -> Tensor:
        (fed,) = self._run("feed", (x,), w.gate_up, w.down)
        return fed

    def _run(self, name: str, varying: tuple[Tensor, ...], *weights: Tensor) -> Sequence[Tensor]:
        tokens = len(varying[0])
        if tokens >= _LEAST:
            outputs: Sequence[Tensor] = self._loaded[name](*varying, *weights)
            return outputs
        padded = [_padded(x) for x in varying]
        return [out[:tokens] for out in self._loaded[name](*padded, *weights)]


class _Plan:
    """The shapes of one rank's pieces, for up to `tokens` tokens."""

    def __init__(self, spec: DecoderSpec, part: ModelPart, tokens: int, dtype: torch.dtype) -> None:
        self._shape = shape_of(spec, part)
        self._sharded = part.width > 1
        self._hidden = spec.hidden
        self._columns = len(part.columns)
        self._tokens = tokens
        self._dtype = dtype

    def graphs(self) -> tuple[Graph, ...]:
        shape, hidden, columns = self._shape, self._hidden, self._columns
        dim, both = shape.head_dim, shape.heads + shape.kv_heads
        rows = (both + shape.kv_heads) * dim
        bias = (rows,) if shape.qkv_bias else (0,)
        qk_norm = (both, dim) if shape.qk_norm else (0,)
        x, attended = self._varying(hidden), self._varying(shape.heads * dim)
        rope = ((self._tokens, dim), torch.float32)
        qkv, mlp = ((rows, hidden), bias, qk_norm), ((2 * columns, hidden), (hidden, columns))
        if self._sharded:
            heads = functools.partial(block.heads, shape)
            join = functools.partial(block.join, eps=shape.norm_eps)
            return (
                self._graph("heads", heads, (x, rope), *qkv),
                self._graph("join", join, (x, x), (hidden,)),
                self._graph("feed", _alone(swiglu), (x,), *mlp),
            )
        before = functools.partial(block.before, shape)
        after = _alone(functools.partial(block.after, shape))
        out = (hidden, shape.heads * dim)
        return (
            self._graph("before", before, (x, rope), (hidden,), *qkv),
            self._graph("after", after, (x, attended), out, (hidden,), *mlp),
        )

    def _varying(self, width: int) -> _Input:
        return (self._tokens, width), self._dtype

    def _graph(
        self,
        name: str,
        function: Callable[..., Any],
        varying: tuple[_Input, ...],
        *weights: tuple[int, ...],
    ) -> Graph:
        return Graph(
            name,
            function,
            (*varying, *((size, self._dtype) for size in weights)),
            varying=tuple(range(len(varying))),
            tokens=(_LEAST, self._tokens),
            constants=repr(self._shape),
            sources=_SOURCES,
        )


def _alone(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor]]:
    def single(*arguments: Tensor) -> tuple[Tensor]:
        return (function(*arguments),)

    return single


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, _LEAST - len(x)))
