"""Which part of a model a rank holds. No torch.

Rank r of a group is stage r // tp and shard r % tp (dp 1): the ranks of a stage are neighbours.
"""

from dataclasses import dataclass

from pds_engine.config import ParallelConfig
from pds_engine.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's part: whole layers, and contiguous slices of heads, MLP columns and token ids."""

    pp_rank: int
    pp: int
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
    def embeds(self) -> bool:
        return self.pp_rank == 0

    @property
    def samples(self) -> bool:
        return self.pp_rank == self.pp - 1


def part(spec: DecoderSpec, split: ParallelConfig, rank: int) -> Part:
    """The part of rank `rank`; `registry.check` has shown that the split is possible.

    KV heads are replicated when there are fewer of them than shards.
    """
    pp_rank, tp_rank = divmod(rank % (split.pp * split.tp), split.tp)
    replicas = max(1, split.tp // spec.kv_heads)
    rows = -(-spec.vocab // split.tp)
    return Part(
        pp_rank=pp_rank,
        pp=split.pp,
        tp_rank=tp_rank,
        tp=split.tp,
        layers=_share(spec.layers, split.pp, pp_rank),
        heads=_share(spec.heads, split.tp, tp_rank),
        kv_heads=_share(spec.kv_heads, split.tp // replicas, tp_rank // replicas),
        columns=_share(spec.intermediate, split.tp, tp_rank),
        vocab=range(spec.vocab)[tp_rank * rows : (tp_rank + 1) * rows],
        vocab_rows=rows,
    )


def _share(total: int, parts: int, index: int) -> range:
    """Part `index` of range(total) cut into `parts`; the first ones may be larger by one."""
    each, more = divmod(total, parts)
    start = index * each + min(index, more)
    return range(start, start + each + (index < more))
