"""How the ranks of a group are numbered and named, and which part of a model each holds. No torch.

Rank (stage·dp + d)·tp + t is shard t of dp rank d's attention group: the ranks of a stage are
neighbours, and so are those of an attention group within it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pds_engine.config import ParallelConfig
from pds_engine.messages import Role
from pds_engine.parallel.balance import balanced
from pds_engine.parallel.share import Share
from pds_engine.spec import DecoderSpec, DenseSpec, LayerSpec


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
    """One rank's part: whole layers, and contiguous slices of heads, columns, experts, token ids.

    Heads and token ids are split over the attention group; columns, or whole experts, over all
    ranks of the stage.
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
    vocab: range
    vocab_rows: int
    """Rows of embedding and head, the same on all shards: those past `vocab` are padding."""
    ep: bool = False
    """Experts are split whole, and not each by its columns. False on a stage of one rank."""

    @property
    def width(self) -> int:
        """Ranks of the stage."""
        return self.tp * self.dp

    @property
    def stage_rank(self) -> int:
        """Its place among them."""
        return self.dp_rank * self.tp + self.tp_rank

    @property
    def embeds(self) -> bool:
        return self.pp_rank == 0

    @property
    def samples(self) -> bool:
        return self.pp_rank == self.pp - 1

    def columns(self, total: int) -> range:
        """Its columns of a block of `total` that all ranks of the stage share."""
        return _share(total, self.width, self.stage_rank)

    def expert_columns(self, total: int) -> range:
        """Its columns of each expert, or of the block that stands beside experts."""
        return range(total) if self.ep else self.columns(total)

    def experts(self, total: int) -> range:
        """The experts that it holds, whole or its columns of them. With ep there may be none."""
        return _share(total, self.width, self.stage_rank) if self.ep else range(total)

    def experts_by_rank(self, total: int) -> tuple[int, ...]:
        """With ep: how many experts each rank of the stage holds, in order of the experts."""
        return tuple(len(_share(total, self.width, rank)) for rank in range(self.width))

    def share(self, layer: LayerSpec) -> Share:
        """How much of `layer`, one of its own, it holds."""
        heads, kv_heads, feed = len(self.heads), len(self.kv_heads), layer.feed
        if isinstance(feed, DenseSpec):
            return Share(heads, kv_heads, len(self.columns(feed.columns)))
        return Share(
            heads,
            kv_heads,
            columns=len(self.expert_columns(feed.columns)),
            experts=len(self.experts(feed.experts)),
            shared_columns=len(self.expert_columns(feed.shared_columns)),
        )


def part(spec: DecoderSpec, split: ParallelConfig, rank: int, role: Role = "unified") -> ModelPart:
    """The part of rank `rank`; `registry.check` has shown that the split is possible.

    KV heads are replicated when there are fewer of them than shards.
    """
    pp_rank, dp_rank, tp_rank = Numbering.of(split).place(rank)
    replicas = max(1, split.tp // spec.kv.heads)
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
        kv_heads=_share(spec.kv.heads, split.tp // replicas, tp_rank // replicas),
        vocab=range(spec.vocab)[tp_rank * rows : (tp_rank + 1) * rows],
        vocab_rows=rows,
        ep=split.ep and split.width > 1,
    )


def _range(counts: Sequence[int], index: int) -> range:
    start = sum(counts[:index])
    return range(start, start + counts[index])


def _share(total: int, parts: int, index: int) -> range:
    """Part `index` of range(total) cut into `parts`; the first ones may be larger by one."""
    each, more = divmod(total, parts)
    start = index * each + min(index, more)
    return range(start, start + each + (index < more))
