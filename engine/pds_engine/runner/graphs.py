"""The compiled form of a layer's pieces, and the list of what a rank will run.

The list is the warm-up's shape plan. Layers of one shape (layers.shapes) share their graphs, two of
them, or three where a stage has several ranks, and shapes share what is alike in them. A graph
takes any number of tokens up to a bound far above a step's, so that roles, settings and shards
share it too: the pods of a whole PDServing compile two or three graphs a shape between them.
Mixtures of experts, and queries that are normalised over several ranks, are not among them: these
run eagerly.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pds_kernels.activation import gated_activation
from pds_kernels.cache import Artefact, Cache
from pds_kernels.graph import Graph
from pds_kernels.rms_norm import rms_norm
from pds_kernels.rope import rotate
from torch import Tensor

from pds_engine.config import EngineConfig
from pds_engine.layers import block, gqa, latent, linear, mlp, ops, rope, shapes
from pds_engine.layers.gqa import Into
from pds_engine.layers.linear import Matrix
from pds_engine.layers.mlp import gated
from pds_engine.layers.ops import plain
from pds_engine.layers.shapes import HeadsShape, Shape
from pds_engine.models.loader import DTYPES, compute_dtype
from pds_engine.models.pieces import Pieces, shape_of
from pds_engine.models.weights import DenseWeights, LayerWeights
from pds_engine.parallel.collectives import Collectives
from pds_engine.parallel.layout import ModelPart
from pds_engine.runner.shape_plan import most_tokens
from pds_engine.spec import DecoderSpec

_BOUND = 1 << 16
"""Tokens in a step that every graph takes; more where a configuration asks for more."""
_LEAST = 2  # torch.export specialises a dimension of one
_Input = tuple[tuple[int, ...], torch.dtype]
_SOURCES = (
    *(
        Path(module.__file__ or "")
        for module in (block, gqa, latent, linear, mlp, ops, rope, shapes)
    ),
    *(Path(inspect.getfile(definition)) for definition in (gated_activation, rms_norm, rotate)),
)
"""The layers, and the kernels' definitions that they are made of."""
Compiled = Callable[..., Any]


def plan(
    config: EngineConfig, spec: DecoderSpec, part: ModelPart, device: torch.device
) -> tuple[Graph, ...]:
    """Every graph that a rank of this layout runs: the pieces before and after attention.

    Those of all layers, also of other stages': which layers a stage has is no part of the plan.
    """
    dtype = compute_dtype(DTYPES[config.model.dtype], device)
    made = _by_shape(spec, part, _tokens(config), dtype)
    named = {graph.name: graph for graphs in made.values() for graph in graphs.values()}
    return tuple(named.values())


def eager(spec: DecoderSpec, part: ModelPart) -> tuple[str, ...]:
    """What a layer computes that no graph of `plan` covers, in words for people."""
    shapes = [shape_of(spec, layer, part) for layer in spec.layers]
    found = ["attention over pages"]
    if any(not shape.columns for shape in shapes):
        found.append("experts")
    if any(_normed_over_ranks(shape) for shape in shapes):
        found.append("queries and keys that are normalised over ranks")
    return tuple(found)


def fetch(graph: Graph, cache: Cache, timeout: float) -> Artefact:
    """The compiled `graph`, built here if nobody has."""
    return cache.get(graph.kind, graph.key_inputs(), graph.build, timeout=timeout)


def compiled(
    config: EngineConfig,
    spec: DecoderSpec,
    part: ModelPart,
    device: torch.device,
    loaded: Mapping[str, Compiled],
) -> Mapping[Shape, Pieces]:
    """The pieces of each shape, run by the graphs of `plan`, which are `loaded` by their names."""
    dtype = compute_dtype(DTYPES[config.model.dtype], device)
    made = _by_shape(spec, part, _tokens(config), dtype)
    return {
        shape: CompiledPieces(shape, {piece: loaded[graph.name] for piece, graph in graphs.items()})
        for shape, graphs in made.items()
    }


class CompiledPieces(Pieces):
    """The pieces run by compiled graphs, `loaded` by the names of the pieces."""

    def __init__(self, shape: Shape, loaded: Mapping[str, Compiled]) -> None:
        super().__init__(shape, plain(shape))
        self._loaded = loaded

    def before(
        self, x: Tensor, rope: Tensor, w: LayerWeights, into: Into | None
    ) -> tuple[Tensor, ...]:
        """It rotates by itself, and never writes: `into` is for kernels of GPUs."""
        return tuple(self._run("before", (x, rope), w.norms.attention_in, *w.attention.inputs))

    def after(self, x: Tensor, attended: Tensor, w: LayerWeights, feed: DenseWeights) -> Tensor:
        norms, attention = w.norms, w.attention
        weights = (attention.out, attention.out_bias, *norms[1:], *feed)
        (out,) = self._run("after", (x, attended), *weights)
        return out

    def between(self, x: Tensor, attended: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor]:
        norms, attention = w.norms, w.attention
        weights = (attention.out, attention.out_bias, norms.attention_out, norms.feed_in)
        joined, normed = self._run("between", (x, attended), *weights)
        return joined, normed

    def heads(
        self, x: Tensor, rope: Tensor, w: LayerWeights, ranks: Collectives, into: Into | None
    ) -> tuple[Tensor | None, ...]:
        if "heads" not in self._loaded:
            return super().heads(x, rope, w, ranks, into)
        return tuple(self._run("heads", (x, rope), *w.attention.inputs))

    def join(
        self, x: Tensor, y: Tensor, out_norm: Tensor, in_norm: Tensor
    ) -> tuple[Tensor, Tensor]:
        joined, normed = self._run("join", (x, y), out_norm, in_norm)
        return joined, normed

    def feed(self, x: Tensor, w: DenseWeights) -> Tensor:
        (fed,) = self._run("feed", (x,), *w)
        return fed

    def _run(self, name: str, varying: tuple[Tensor, ...], *weights: Matrix) -> Sequence[Tensor]:
        tokens = len(varying[0])
        if tokens >= _LEAST:
            outputs: Sequence[Tensor] = self._loaded[name](*varying, *weights)
            return outputs
        padded = [_padded(x) for x in varying]
        return [out[:tokens] for out in self._loaded[name](*padded, *weights)]


def _normed_over_ranks(shape: Shape) -> bool:
    """Such heads need a sum over the attention group within the piece."""
    attention = shape.attention
    return (
        isinstance(attention, HeadsShape) and attention.qk_norm == "whole" and attention.shards > 1
    )


def _tokens(config: EngineConfig) -> int:
    """The most tokens that a graph takes."""
    return max(_BOUND, 1 << most_tokens(config).bit_length())


def _by_shape(
    spec: DecoderSpec, part: ModelPart, tokens: int, dtype: torch.dtype
) -> dict[Shape, dict[str, Graph]]:
    """Each shape's graphs by piece. What two shapes have alike is one graph, of one name."""
    found: dict[Shape, dict[str, Graph]] = {}
    names: dict[tuple[str, str], str] = {}
    for layer in spec.layers:
        shape = shape_of(spec, layer, part)
        if shape in found:
            continue
        made = _Graphs(spec, shape, tokens, dtype).all(sharded=part.width > 1)
        found[shape] = {}
        for graph in made:
            known = sum(piece == graph.name for piece, _ in names)
            name = f"{graph.name}-{known + 1}" if known else graph.name
            name = names.setdefault((graph.name, repr((graph.inputs, graph.constants))), name)
            found[shape][graph.name] = replace(graph, name=name)
    return found


class _Graphs:
    """The graphs of one shape, for up to `tokens` tokens; arguments are those of the pieces."""

    def __init__(self, spec: DecoderSpec, shape: Shape, tokens: int, dtype: torch.dtype) -> None:
        self._shape = shape
        self._hidden = spec.hidden
        self._tokens = tokens
        self._dtype = dtype
        self._norm_dtype = torch.float32 if spec.norm_wide else dtype

    def all(self, *, sharded: bool) -> list[Graph]:
        """Those that a rank runs by itself, or as one of several."""
        return self._sharded() if sharded else self._alone()

    def _alone(self) -> list[Graph]:
        shape, ops = self._shape, plain(self._shape)
        into, out = self._norm(into=True), self._norm(into=False)
        before = self._graph(
            "before",
            functools.partial(block.before, shape, ops),
            (self._hidden_states, self._rope),
            into,
            *self._inputs(),
            constants=(shape.attention, shape.norms, shape.norm_eps),
        )
        varying = (self._hidden_states, self._attended)
        weights = (self._weight(self._hidden, self._attended[0][1]), self._out_bias, out, into)
        residual = (shape.norms, shape.norm_eps, shape.out_bias)
        if not shape.columns:
            between = functools.partial(block.between, shape, ops)
            return [before, self._graph("between", between, varying, *weights, constants=residual)]
        after = _alone(functools.partial(block.after, shape, ops))
        constants = (*residual, shape.activation)
        return [
            before,
            self._graph("after", after, varying, *weights, out, *self._mlp(), constants=constants),
        ]

    def _sharded(self) -> list[Graph]:
        shape, ops, attention = self._shape, plain(self._shape), self._shape.attention
        into, out = self._norm(into=True), self._norm(into=False)
        found = []
        if not _normed_over_ranks(shape):
            heads, varying = (
                functools.partial(block.heads, shape),
                (self._hidden_states, self._rope),
            )
            constants: tuple[object, ...] = (attention,)
            found.append(self._graph("heads", heads, varying, *self._inputs(), constants=constants))
        join, varying = functools.partial(block.join, shape, ops), (self._hidden_states,) * 2
        constants = (shape.norms, shape.norm_eps)
        found.append(self._graph("join", join, varying, out, into, constants=constants))
        if shape.columns:
            feed = _alone(functools.partial(gated, ops.activate))
            constants = (shape.activation,)
            found.append(
                self._graph("feed", feed, (self._hidden_states,), *self._mlp(), constants=constants)
            )
        return found

    def _inputs(self) -> list[_Input]:
        """`inputs` of the attention's weights."""
        shape, hidden = self._shape.attention, self._hidden
        if isinstance(shape, HeadsShape):
            both = shape.heads + shape.kv_heads
            rows = (both + shape.kv_heads) * shape.head_dim
            return [
                self._weight(rows, hidden),
                self._weight(rows if shape.qkv_bias else 0),
                self._weight(0)
                if shape.qk_norm == "none"
                else ((both, shape.head_dim), self._norm_dtype),
            ]
        queries = shape.heads * (shape.nope_dim + shape.rope_dim)
        rank = shape.q_rank
        return [
            self._weight(0) if rank is None else self._weight(rank, hidden),
            self._weight(rank or 0),
            self._weight(queries, rank or hidden),
            self._weight(shape.kv_rank + shape.rope_dim, hidden),
            self._weight(shape.kv_rank),
        ]

    def _mlp(self) -> tuple[_Input, _Input]:
        columns, hidden = self._shape.columns, self._hidden
        return self._weight(2 * columns, hidden), self._weight(hidden, columns)

    @property
    def _hidden_states(self) -> _Input:
        return self._weight(self._tokens, self._hidden)

    @property
    def _rope(self) -> _Input:
        shape = self._shape.attention
        rotated = shape.rotated if isinstance(shape, HeadsShape) else shape.rope_dim
        return (self._tokens, rotated), torch.float32

    @property
    def _attended(self) -> _Input:
        shape = self._shape.attention
        width = shape.head_dim if isinstance(shape, HeadsShape) else shape.value_dim
        return self._weight(self._tokens, shape.heads * width)

    @property
    def _out_bias(self) -> _Input:
        return self._weight(self._hidden if self._shape.out_bias else 0)

    def _norm(self, *, into: bool) -> _Input:
        """The norm before a part of the layer, or behind it."""
        absent = self._shape.norms == ("post" if into else "pre")
        return (0 if absent else self._hidden,), self._dtype if absent else self._norm_dtype

    def _weight(self, *size: int) -> _Input:
        return size, self._dtype

    def _graph(
        self,
        piece: str,
        function: Compiled,
        varying: tuple[_Input, ...],
        *weights: _Input,
        constants: tuple[object, ...],
    ) -> Graph:
        return Graph(
            piece,
            function,
            (*varying, *weights),
            varying=tuple(range(len(varying))),
            tokens=(_LEAST, self._tokens),
            constants=repr(constants),
            sources=_SOURCES,
        )


def _alone(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor]]:
    def single(*arguments: Tensor) -> tuple[Tensor]:
        return (function(*arguments),)

    return single


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, _LEAST - len(x)))
