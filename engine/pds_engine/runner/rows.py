"""Bringing some tokens' hidden states together: the ranks of an attention group hold parts."""

from collections.abc import Sequence

import torch
from pds_kernels.upload import upload
from torch import Tensor

from pds_engine.parallel.collectives import Collectives


def together(part: Tensor, wanted: Sequence[int], ranks: Collectives) -> Tensor:
    """The states of tokens `wanted` of a batch, in that order: [R, hidden], on every rank.

    part: [T / size, hidden], this rank's. Ranks exchange those tokens' states and no others.
    """
    if ranks.size == 1:
        return part[upload(list(wanted), torch.int64, part.device)]
    owners = [at // len(part) for at in wanted]
    sizes = [owners.count(rank) for rank in range(ranks.size)]
    first = ranks.rank * len(part)
    own = [at - first for at, owner in zip(wanted, owners, strict=True) if owner == ranks.rank]
    given = part if own == list(range(len(part))) else part[own]
    found = ranks.gather_parts(given, sizes)
    order = sorted(range(len(wanted)), key=owners.__getitem__)
    if order == list(range(len(wanted))):
        return found
    places = sorted(range(len(wanted)), key=order.__getitem__)
    return found[places]
