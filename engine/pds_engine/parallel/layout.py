"""Which part of a model a rank holds, and how ranks are named. No torch.

Rank r of a group is stage r // tp and shard r % tp (dp 1): the ranks of a stage are neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pds_engine.config import ParallelConfig
from pds_engine.messages import Role
from pds_engine.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class ModelPart:
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


def rank_name(rank: int, tp: int) -> str:
    """What errors and logs call a rank of a group with stages."""
    return f"rank {rank} (stage {rank // tp})"


def part(spec: DecoderSpec, split: ParallelConfig, rank: int, role: Role = "unified") -> ModelPart:
    """The part of rank `rank`; `registry.check` has shown that the split is possible.

    KV heads are replicated when there are fewer of them than shards.
    """
    pp_rank, tp_rank = divmod(rank % (split.pp * split.tp), split.tp)
    replicas = max(1, split.tp // spec.kv_heads)
    rows = -(-spec.vocab // split.tp)
    return ModelPart(
        pp_rank=pp_rank,
        pp=split.pp,
        tp_rank=tp_rank,
        tp=split.tp,
        layers=_range(split.layers or balanced(spec, split.pp, role), pp_rank),
        heads=_share(spec.heads, split.tp, tp_rank),
        kv_heads=_share(spec.kv_heads, split.tp // replicas, tp_rank // replicas),
        columns=_share(spec.intermediate, split.tp, tp_rank),
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
