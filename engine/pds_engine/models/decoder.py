"""A decoder as functions of its weights: a layer is pieces around attention and experts.

    one rank        before | attention | after
                    before | attention | between | experts | added
    several         gather | heads | attention | project | reduce-scatter | join
                    gather | feed | reduce-scatter | join            (or experts | join)

Embedding and head are
split by token id and attention by heads, over the ranks of an attention group; the MLP by columns,
over all ranks of the stage (Shoeybi et al., "Megatron-LM", 2019). Between them a rank holds a part
of the tokens (parallel.parts): what is token-wise is computed once, and the MLP sees the tokens of
all dp ranks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from pds_kernels.rope import RotateAndWrite
from torch import Tensor

from pds_engine.layers.gqa import Into
from pds_engine.layers.linear import PackedMatrix, linear
from pds_engine.layers.ops import Stream, kernels, norm_kernel
from pds_engine.layers.shapes import Shape
from pds_engine.models.mixture import Mixture
from pds_engine.models.pieces import Pieces, shape_of
from pds_engine.models.weights import DenseWeights, ExpertWeights, LayerWeights, Weights
from pds_engine.parallel.collectives import LONE, StageRanks, VocabShard
from pds_engine.parallel.layout import ModelPart
from pds_engine.parallel.parts import Parts
from pds_engine.spec import DecoderSpec, DenseSpec, ExpertsSpec, LayerSpec, RopeSpec

Kv = Sequence[tuple[Tensor, ...]]
"""Each layer's pages as its attention kernel takes them: views of one pool (kv.pool.KvPool)."""


@dataclass(frozen=True, slots=True)
class Attend:
    """A layer's attention, with the plan of the step."""

    run: Callable[..., Tensor]
    """(*queries, keys and values, *pages, *weights)."""
    write_slots: Tensor
    """Of the plan."""
    rotate: RotateAndWrite | None = None
    """What writes keys and values before `run`; None: `run` writes them."""

    def into(self, pages: tuple[Tensor, ...]) -> Into | None:
        """`rotate` for a layer with these pages."""
        rotate, slots = self.rotate, self.write_slots
        if rotate is None:
            return None
        keys, values = pages
        return lambda qkv, rows, norm: rotate(qkv, rows, norm, keys, values, slots)


Attends = Sequence[Attend]
"""Of each layer."""


class Decoder:
    """One rank's part of a model, ready to compute."""

    def __init__(
        self,
        spec: DecoderSpec,
        part: ModelPart,
        weights: Weights,
        ropes: Mapping[RopeSpec, Tensor],
        dtype: torch.dtype,
        ranks: StageRanks = LONE,
    ) -> None:
        """`ropes`: a table of each kind of positions that its layers have."""
        self.spec = spec
        self.part = part
        self.layers = tuple(spec.layers[index] for index in part.layers)
        """Of this rank's stage."""
        self.weights = weights
        self.ropes = ropes
        self.dtype = dtype
        self.ranks = ranks
        self.vocab = VocabShard(part.vocab, spec.vocab, ranks.attention)
        device = weights.layers[0].norms.attention_in.device
        self.mixtures: dict[DenseSpec | ExpertsSpec, Mixture] = {
            layer.feed: Mixture(layer.feed, part, spec.hidden, dtype, device)
            for layer in self.layers
            if isinstance(layer.feed, ExpertsSpec)
        }
        self._shapes = tuple(shape_of(spec, layer, part) for layer in self.layers)
        stream = Stream(spec.hidden, dtype, torch.float32 if spec.norm_wide else dtype, device)
        self.use({shape: Pieces(shape, kernels(shape, stream)) for shape in self._shapes})
        self._norm = norm_kernel(spec.norm_eps, stream)

    def use(self, pieces: Mapping[Shape, Pieces]) -> None:
        """Compute the layers of each shape by these pieces."""
        self.pieces = tuple(pieces[shape] for shape in self._shapes)

    def of_each_kind(self) -> "Decoder":
        """The decoder with the first of all its layers that are alike: the same weights."""
        first = {layer: at for at, layer in reversed(list(enumerate(self.layers)))}
        chosen = sorted(first.values())
        found = Decoder(
            replace(self.spec, layers=tuple(self.layers[at] for at in chosen)),
            replace(self.part, layers=range(len(chosen))),
            replace(self.weights, layers=tuple(self.weights.layers[at] for at in chosen)),
            self.ropes,
            self.dtype,
            self.ranks,
        )
        found.pieces = tuple(self.pieces[at] for at in chosen)
        return found

    def embed(self, tokens: Tensor, parts: Parts) -> Tensor:
        """A batch's tokens [T] → this rank's part of their hidden states, on the first stage."""
        if self.ranks.attention.size == 1:
            found = self._rows(tokens)
        else:
            rows = tokens - self.part.vocab.start
            foreign = (rows < 0) | (rows >= len(self.part.vocab))
            found = self._rows(rows.masked_fill(foreign, 0))
            found.masked_fill_(foreign.unsqueeze(1), 0)
            found = self.ranks.attention.reduce_scatter(found, parts.batch)
        scale = self.spec.embedding_scale
        return found if scale == 1 else found * scale

    def _rows(self, ids: Tensor) -> Tensor:
        table = self.weights.embedding
        if table is None:
            raise ValueError("only the first stage embeds tokens")
        if isinstance(table, PackedMatrix):
            return table.kernel.unpack(table.numbers, ids)
        return F.embedding(ids, table).to(self.dtype)

    def forward(
        self, x: Tensor, positions: Tensor, attends: Attends | None, kv: Kv, parts: Parts
    ) -> Tensor:
        """This stage's layers, for this rank's part of a batch.

        x, and the result: [parts.batch[rank], hidden]; positions: [T], of the whole batch; attends:
        None for a batch without requests, which then has nothing but its share of the MLP.
        """
        ropes = {rope: table[positions] for rope, table in self.ropes.items()}
        if self.ranks.stage.size > 1:
            return self._shared(x, ropes, attends, kv, parts)
        if attends is None:
            return x  # nobody reads it
        for layer, w, pieces, attend, pages in self._stack(attends, kv):
            inputs = pieces.before(x, ropes[layer.attention.rope], w, attend.into(pages))
            attended = attend.run(*inputs, *pages, *w.attention.kernel)
            if isinstance(w.feed, DenseWeights):
                x = pieces.after(x, attended, w, w.feed)
            else:
                x, normed = pieces.between(x, attended, w)
                fed = self._feed(normed, layer, w, pieces, parts)
                x = pieces.added(x, fed, w.norms.feed_out)
        return x

    def _shared(
        self,
        x: Tensor,
        ropes: Mapping[RopeSpec, Tensor],
        attends: Attends | None,
        kv: Kv,
        parts: Parts,
    ) -> Tensor:
        """The layers of a stage of several ranks; `normed` is `x` as what comes next reads it."""
        attention = self.ranks.attention
        following = [w.norms.attention_in for w in self.weights.layers[1:]]
        normed = self.pieces[0].normed(x, self.weights.layers[0].norms.attention_in)
        for at, (layer, w, pieces, attend, pages) in enumerate(self._stack(attends, kv)):
            if attends is None:
                normed = pieces.normed(x, w.norms.feed_in)
            else:
                whole = attention.gather_parts(normed, parts.batch)
                rope, into = ropes[layer.attention.rope], attend.into(pages)
                inputs = pieces.heads(whole, rope, w, attention, into)
                projected = pieces.project(attend.run(*inputs, *pages, *w.attention.kernel), w)
                projected = attention.reduce_scatter(projected, parts.batch)
                x, normed = pieces.join(x, projected, w.norms.attention_out, w.norms.feed_in)
            fed = self._feed(normed, layer, w, pieces, parts)
            if at == len(following):
                x = pieces.added(x, fed, w.norms.feed_out)
            else:
                x, normed = pieces.join(x, fed, w.norms.feed_out, following[at])
        return x

    def _stack(
        self, attends: Attends | None, kv: Kv
    ) -> Iterator[tuple[LayerSpec, LayerWeights, Pieces, Attend, tuple[Tensor, ...]]]:
        """What belongs to each layer. `attends` None: nobody will attend."""
        attend = attends or (_NOBODY,) * len(self.layers)
        return zip(self.layers, self.weights.layers, self.pieces, attend, kv, strict=True)

    def _feed(
        self, normed: Tensor, layer: LayerSpec, w: LayerWeights, pieces: Pieces, parts: Parts
    ) -> Tensor:
        """The feed-forward block's result for this rank's part of the tokens."""
        stage = self.ranks.stage
        if isinstance(w.feed, ExpertWeights):
            return self.mixtures[layer.feed](normed, w.feed, stage, parts)
        fed = pieces.feed(stage.gather_parts(normed, parts.stage), w.feed)
        return stage.reduce_scatter(fed, parts.stage)

    def logits(self, x: Tensor) -> Tensor:
        """[R, hidden] → [R, V] in float32 (see VocabShard), on the last stage."""
        if self.weights.norm is None or self.weights.head is None:
            raise ValueError("only the last stage has logits")
        _, normed = self._norm(x, self.weights.norm)
        scores = linear(normed, self.weights.head).float()
        if self.spec.softcap is not None:
            scores = self.spec.softcap * torch.tanh(scores / self.spec.softcap)
        scores[:, len(self.part.vocab) :] = float("-inf")
        return scores


def _nobody(*_: Tensor) -> Tensor:
    raise ValueError("a batch without requests attends to nothing")


_NOBODY = Attend(_nobody, torch.empty(0, dtype=torch.int64))
