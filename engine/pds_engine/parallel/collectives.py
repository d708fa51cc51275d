"""What the ranks of one stage exchange: sums, everybody's tensors, and rank 0's choice.

All ranks of an attention group execute the same plans, and the plans of dp ranks say what the
others' hold, so they make the same calls in the same order, with shapes and dtypes that all know:
nothing on the wire says which. Only rows that go to experts are of numbers that ranks tell each
other before (parallel.dispatch).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from pds_engine.errors import RankLost


class Collectives:
    """The calls over a process group: gloo for tensors on CPU, NCCL on CUDA.

    Parts: a tensor's rows, split over the ranks in their order. `sizes` has each rank's count, 0
    for some or all of them; every rank gives the same.

    Raises (every call):
        RankLost: another rank has gone or stayed silent for the group's time-out; the group is of
            no more use.
    """

    def __init__(self, group: dist.ProcessGroup, rank: int, size: int) -> None:
        self._group = group
        self.rank = rank
        self.size = size

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum of all ranks' `x`, written into `x` and the same to the last bit everywhere."""
        self._wait("all_reduce", lambda: self._group.allreduce(x))
        return x

    def gather(self, x: Tensor) -> Tensor:
        """All ranks' `x`, in order of rank: [size, *x.shape], on every rank."""
        flat = x.new_empty(self.size * x.numel())
        self._wait("gather", lambda: self._group._allgather_base(flat, x.contiguous().view(-1)))
        return flat.view(self.size, *x.shape)

    def gather_parts(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """All ranks' parts, one after another: [sizes[rank], ...] → [sum(sizes), ...]."""
        whole = x.new_empty(sum(sizes), *x.shape[1:])
        if not whole.numel():
            return whole
        take = _uneven(sizes)
        if x.is_cuda and not take:
            self._wait("gather", lambda: self._group._allgather_base(whole, x.contiguous()))
        else:
            # gloo's own gather takes no uneven parts, and is slower on even ones.
            copies = torch.cat([x] * self.size)
            self._wait("gather", lambda: self._group.alltoall_base(whole, copies, take, []))
        return whole

    def reduce_scatter(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """This rank's part of the sum of all ranks' `x`: [sum(sizes), ...] → [sizes[rank], ...].

        Addends are those of ranks 0, 1, …, however the parts are cut; sums of bfloat16 are rounded
        once, at their end.
        """
        if not x.numel():
            return x
        x, own, give = x.contiguous(), sizes[self.rank], _uneven(sizes)
        if x.is_cuda and not give:
            part, options = x.new_empty(own, *x.shape[1:]), dist.ReduceScatterOptions()
            self._wait("reduce_scatter", lambda: self._group._reduce_scatter_base(part, x, options))
            return part
        # gloo's own takes even parts alone, and more than twice as long.
        addends = x.new_empty(self.size, own, *x.shape[1:])
        self._wait("reduce_scatter", lambda: self._group.alltoall_base(addends, x, [], give))
        return addends.sum(0)

    def all_to_all(self, x: Tensor, give: Sequence[int], take: Sequence[int]) -> Tensor:
        """Other rows to each rank: [sum(give), ...] → [sum(take), ...], both in order of rank.

        `give` has how many rows go to each rank, `take` how many come from each. They differ from
        rank to rank, so all of them say so, even where they are alike.
        """
        found, x = x.new_empty(sum(take), *x.shape[1:]), x.contiguous()
        splits = list(take), list(give)
        self._wait("all_to_all", lambda: self._group.alltoall_base(found, x, *splits))
        return found

    def read(self, counts: Tensor, given: int) -> list[int]:
        """How many rows go where, and come from where, read back from the device; `given` go."""
        found: list[int] = counts.tolist()
        return found

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's `x`, written into `x`."""
        self._wait("broadcast", lambda: self._group.broadcast(x, 0))
        return x

    def _wait(self, name: str, start: Callable[[], dist.Work]) -> None:
        try:
            start().wait()
        except RuntimeError as error:
            raise RankLost(f"{name} failed at shard {self.rank} of {self.size}: {error}") from error


def _uneven(sizes: Sequence[int]) -> list[int]:
    """As an all-to-all takes them: none where they are all alike, which takes it less time."""
    return [] if min(sizes) == max(sizes) else list(sizes)


class Alone(Collectives):
    """The only rank of its group: every call gives back what it was given."""

    def __init__(self) -> None:
        self.rank = 0
        self.size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)

    def gather_parts(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return x

    def reduce_scatter(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        return x

    def all_to_all(self, x: Tensor, give: Sequence[int], take: Sequence[int]) -> Tensor:
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        return x


ALONE = Alone()


class StageRanks(NamedTuple):
    """The ranks among which the layers of a stage are split."""

    attention: Collectives
    """Those of one dp rank, over which heads and token ids are split."""
    stage: Collectives
    """Those of all dp ranks, over which columns, or whole experts, are split. At dp 1 the same."""


LONE = StageRanks(ALONE, ALONE)


@dataclass(frozen=True, slots=True)
class VocabShard:
    """The token ids whose embedding rows and scores this rank has: column c is id ids.start + c.

    Columns past the last id are padding, of score -inf: every rank has as many columns, and only
    the last ranks have padding, so that all ranks' columns side by side are in order of id.
    """

    ids: range
    total: int
    """Tokens in the whole vocabulary."""
    ranks: Collectives

    @property
    def columns(self) -> int:
        """Of this rank's scores, padding included."""
        return -(-self.total // self.ranks.size)
