"""The compiled form of a layer's pieces, and the list of what a rank will run.

The list is the warm-up's shape plan. All layers share their shapes, so a pair of graphs serves
every layer of a stage; a graph takes any number of tokens up to a bound far above a step's, so that
roles and settings share it too: the pods of a whole PDServing compile two graphs between them.
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
from pds_engine.layers import mlp, norm, rope
from pds_engine.models import decoder
from pds_engine.models.decoder import LayerWeights, Pieces, Shape
from pds_engine.models.loader import DTYPES, compute_dtype
from pds_engine.parallel.layout import Part
from pds_engine.spec import DecoderSpec

KIND = "inductor"
_BOUND = 1 << 16
"""Tokens in a step that every graph takes; more where a configuration asks for more."""
_LEAST = 2  # torch.export specialises a dimension of one
_SOURCES = tuple(Path(module.__file__ or "") for module in (decoder, mlp, norm, rope))


def shape_of(spec: DecoderSpec, part: Part) -> Shape:
    """What the pieces of this rank close over."""
    return Shape(len(part.heads), len(part.kv_heads), spec.head_dim, spec.norm_eps, spec.qk_norm)


def plan(
    config: EngineConfig, spec: DecoderSpec, part: Part, device: torch.device
) -> tuple[Graph, Graph]:
    """Every graph that a rank with this part will run: before and after attention."""
    scheduler = config.scheduler
    step = scheduler.max_step_tokens or scheduler.chunk_size + scheduler.max_running
    longest = max(step + config.parallelism.tp, scheduler.max_running)
    tokens = max(_BOUND, 1 << longest.bit_length())
    dtype = compute_dtype(DTYPES[config.model.dtype], device)
    return _pair(tokens, spec, shape_of(spec, part), len(part.columns), dtype)


def fetch(graph: Graph, cache: Cache, timeout: float) -> Artefact:
    """The compiled `graph`, built here if nobody has."""
    folder = functools.partial(aot.build, graph)
    return cache.get(KIND, graph.key_inputs(), folder, timeout=timeout)


class CompiledPieces(Pieces):
    """The pieces run by compiled graphs, `loaded` by the names of `plan`."""

    def __init__(self, shape: Shape, loaded: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(shape)
        self._before, self._after = loaded["before"], loaded["after"]

    def before(self, x: Tensor, rope: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
        tokens = len(x)
        if tokens < _LEAST:
            x, rope = _padded(x), _padded(rope)
        q, k, v = self._before(x, rope, w.input_norm, w.qkv, w.qk_norm)
        return q[:tokens], k[:tokens], v[:tokens]

    def after(self, x: Tensor, attended: Tensor, w: LayerWeights) -> Tensor:
        tokens = len(x)
        if tokens < _LEAST:
            x, attended = _padded(x), _padded(attended)
        (out,) = self._after(x, attended, w.out, w.post_norm, w.gate_up, w.down)
        result: Tensor = out[:tokens]
        return result


def _pair(
    tokens: int, spec: DecoderSpec, shape: Shape, columns: int, dtype: torch.dtype
) -> tuple[Graph, Graph]:
    hidden, dim = spec.hidden, spec.head_dim
    both, q = shape.heads + shape.kv_heads, shape.heads * dim
    qk_norm = (both, dim) if shape.qk_norm else (0,)
    before = [(tokens, hidden), (hidden,), ((both + shape.kv_heads) * dim, hidden), qk_norm]
    after = [(tokens, hidden), (tokens, q), (hidden, q), (hidden,), (2 * columns, hidden)]

    def piece(
        name: str,
        function: Callable[..., Any],
        inputs: Sequence[tuple[tuple[int, ...], torch.dtype]],
    ) -> Graph:
        return Graph(
            name,
            function,
            tuple(inputs),
            varying=(0, 1),
            tokens=(_LEAST, tokens),
            constants=repr(shape),
            sources=_SOURCES,
        )

    rope = ((tokens, dim), torch.float32)
    inputs = [(size, dtype) for size in before]
    return (
        piece("before", functools.partial(decoder.before, shape), [inputs[0], rope, *inputs[1:]]),
        piece("after", _after(shape), [(size, dtype) for size in (*after, (hidden, columns))]),
    )


def _after(shape: Shape) -> Callable[..., tuple[Tensor]]:
    def after(*arguments: Tensor) -> tuple[Tensor]:
        return (decoder.after(shape, *arguments),)

    return after


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, _LEAST - len(x)))
