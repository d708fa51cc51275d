"""How the ranks of a group are numbered and named, and which part of a model each holds. No torch.

Rank (stage·dp + d)·tp + t is shard t of dp rank d's attention group: the ranks of a stage are
neighbours, and so are those of an attention group within it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pds_engine.config import ParallelConfig
from pds_engine.messages import Role
from pds_engine.spec import DecoderSpec


class RankPlace(NamedTuple):
    """Where a rank stands in its group."""

    stage: int
    dp: int
    """Which dp rank's attention group it is of."""
    tp: int
    """Its shard of that attention group."""


class Numbering(NamedTuple):
    """From ranks to places and back. Whatever asks which rank is where asks this."""

    tp: int
    """Ranks of an attention group."""
    dp: int = 1

    @classmethod
    def of(cls, split: ParallelConfig) -> "Numbering":
        return cls(split.tp, split.dp)

    @property
    def width(self) -> int:
        """Ranks of a stage. The same place of the next stage is so many ranks further."""
        return self.tp * self.dp

    def place(self, rank: int) -> RankPlace:
        group, shard = divmod(rank, self.tp)
        return RankPlace(group // self.dp, group % self.dp, shard)

    def rank(self, place: RankPlace) -> int:
        return (place.stage * self.dp + place.dp) * self.tp + place.tp

    def stage(self, stage: int) -> range:
        """The ranks of a stage."""
        return range(stage * self.width, (stage + 1) * self.width)

    def stages(self, ranks: range) -> range:
        """The stages that ranks side by side are of: a pod's, say."""
        return range(self.place(ranks[0]).stage, self.place(ranks[-1]).stage + 1)

    def attention(self, stage: int, dp: int) -> range:
        """The ranks of one attention group."""
        first = self.rank(RankPlace(stage, dp, 0))
        return range(first, first + self.tp)

    def name(self, rank: int) -> str:
        """What errors and logs call a rank of a group with stages or dp ranks."""
        place = self.place(rank)
        dp = f", dp rank {place.dp}" if self.dp > 1 else ""
        return f"rank {rank} (stage {place.stage}{dp})"


@dataclass(frozen=True, slots=True)
class ModelPart:
    """One rank's part: whole layers, and contiguous slices of heads, MLP columns and token ids.

    Heads and token ids are split over the attention group, columns over all ranks of the stage.
    """

    pp_rank: int
    pp: int
    dp_rank: int
    dp: int
    tp_rank: int
    tp: int
    layers: range
    heads: range
    kv_heads: range
    columns: range
    vocab: range
    vocab_rows: int
    """Rows of embedding and head, the same on all shards: those past `vocab` are padding."""

    @property
    def width(self) -> int:
        """Ranks of the stage."""
        return self.tp * self.dp

    @property
    def embeds(self) -> bool:
        return self.pp_rank == 0

    @property
    def samples(self) -> bool:
        return self.pp_rank == self.pp - 1


def part(spec: DecoderSpec, split: ParallelConfig, rank: int, role: Role = "unified") -> ModelPart:
    """The part of rank `rank`; `registry.check` has shown that the split is possible.

    KV heads are replicated when there are fewer of them than shards.
    """
    pp_rank, dp_rank, tp_rank = Numbering.of(split).place(rank)
    replicas = max(1, split.tp // spec.kv_heads)
    rows = -(-spec.vocab // split.tp)
    return ModelPart(
        pp_rank=pp_rank,
        pp=split.pp,
        dp_rank=dp_rank,
        dp=split.dp,
        tp_rank=tp_rank,
        tp=split.tp,
        layers=_range(split.layers or balanced(spec, split.pp, role), pp_rank),
        heads=_share(spec.heads, split.tp, tp_rank),
        kv_heads=_share(spec.kv_heads, split.tp // replicas, tp_rank // replicas),
        columns=_share(spec.intermediate, split.width, dp_rank * split.tp + tp_rank),
        vocab=range(spec.vocab)[tp_rank * rows : (tp_rank + 1) * rows],
        vocab_rows=rows,
    )


def balanced(spec: DecoderSpec, stages: int, role: Role) -> tuple[int, ...]:
    """Layers of each stage, so that the largest one has as few parameters as can be.

    Those count that every step multiplies with: the layers', and on role=decode the head's, so that
    its last stage has fewer layers where the vocabulary is large. Chunks of a prompt pass the head
    by, all but the last, and of the embedding a step reads a row a token.
    """
    layer = _layer_parameters(spec)
    held = [layer] * stages
    held[-1] += spec.vocab * spec.hidden * (role == "decode")
    counts = [1] * stages
    for _ in range(spec.layers - stages):
        # Layers are alike, so filling the emptiest stage each time leaves no better split.
        least = min(range(stages), key=held.__getitem__)
        counts[least] += 1
        held[least] += layer
    return tuple(counts)


def _layer_parameters(spec: DecoderSpec) -> int:
    attention = spec.hidden * spec.head_dim * 2 * (spec.heads + spec.kv_heads)
    return attention + 3 * spec.hidden * spec.intermediate


def _range(counts: Sequence[int], index: int) -> range:
    start = sum(counts[:index])
    return range(start, start + counts[index])


def _share(total: int, parts: int, index: int) -> range:
    """Part `index` of range(total) cut into `parts`; the first ones may be larger by one."""
    each, more = divmod(total, parts)
    start = index * each + min(index, more)
    return range(start, start + each + (index < more))
