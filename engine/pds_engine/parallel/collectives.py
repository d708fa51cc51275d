"""What the ranks of one stage exchange: sums, everybody's tensors, and rank 0's choice.

All ranks of a stage execute the same plans, so they make the same calls in the same order, with
tensors of the same shape and dtype: nothing on the wire says which.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from pds_engine.errors import RankLost


class Collectives:
    """The calls over a process group: gloo for tensors on CPU, NCCL on CUDA.

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

    def broadcast(self, x: Tensor) -> Tensor:
        """Rank 0's `x`, written into `x`."""
        self._wait("broadcast", lambda: self._group.broadcast(x, 0))
        return x

    def _wait(self, name: str, start: Callable[[], dist.Work]) -> None:
        try:
            start().wait()
        except RuntimeError as error:
            raise RankLost(f"{name} failed at shard {self.rank} of {self.size}: {error}") from error


class Alone(Collectives):
    """The only rank of its stage: every call gives back what it was given."""

    def __init__(self) -> None:
        self.rank = 0
        self.size = 1

    def all_reduce(self, x: Tensor) -> Tensor:
        return x

    def gather(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)

    def broadcast(self, x: Tensor) -> Tensor:
        return x


ALONE = Alone()


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
