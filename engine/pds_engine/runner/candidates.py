"""The likeliest tokens of a vocabulary that may be split over ranks."""

from collections.abc import Sequence

import torch
from pds_kernels import sampler
from pds_kernels.sampler import Bounds, Selection, unpack
from torch import Tensor

from pds_engine.messages import Sampling
from pds_engine.parallel.collectives import VocabShard


def selector(vocab: VocabShard, device: torch.device) -> Selection:
    """The best way to this rank's likeliest tokens that there is on `device`."""
    geometry = sampler.Geometry(vocab.columns, vocab.ids.start, device)
    return sampler.choose_selection(geometry).make(geometry)


def bounds_of(options: Sequence[Sampling], device: torch.device) -> Bounds:
    """What each row may draw."""
    return Bounds.of(
        [option.top_k for option in options],
        [option.top_p for option in options],
        [option.min_p for option in options],
        device,
    )


def likeliest(
    logits: Tensor, temperatures: Tensor, most: int, vocab: VocabShard, selection: Selection
) -> tuple[Tensor, Tensor]:
    """The `most` likeliest tokens of all ranks, likeliest first: scores and ids, [R, C] each.

    Each rank gives its own `most`: whatever is among the likeliest of all is among those of its
    shard. C is below `most` where the vocabulary is.
    """
    own = selection.likeliest(logits, temperatures, most)
    return unpack(merged(vocab.ranks.gather(own), most))


def merged(gathered: Tensor, most: int) -> Tensor:
    """The `most` greatest of all ranks' [size, R, c], greatest first: [R, C]."""
    if len(gathered) == 1:
        return gathered[0, :, :most]
    everyone = gathered.movedim(0, 1).flatten(1)
    return everyone.topk(min(most, everyone.shape[1])).values
