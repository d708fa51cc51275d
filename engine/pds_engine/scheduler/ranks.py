"""The workers of a group: who has joined, who is ready, and how far each has come."""

from collections.abc import Iterable
from functools import reduce

from msgspec.structs import replace

from pds_engine.errors import ProtocolError, RankLost
from pds_engine.messages import Fault, KernelsProof, KvEndpoint, Progress, Ready, Traffic
from pds_engine.parallel.layout import Numbering
from pds_engine.parallel.watch import Heard, blame, describe
from pds_engine.scheduler.settings import Settings


class Ranks:
    """The ranks of one dp rank. They join, assemble once all have joined, and become ready."""

    def __init__(self, settings: Settings, dp_rank: int = 0) -> None:
        self._settings = settings
        self._numbering = numbering = Numbering.of(settings.parallelism)
        stages = range(settings.parallelism.pp)
        self._dp_rank = dp_rank
        self._members = [rank for at in stages for rank in numbering.attention(at, dp_rank)]
        self._joined: set[int] = set()
        self._ready: dict[int, Ready] = {}
        self._heard: dict[int, Heard] = {}
        self._join_by: float | None = None

    # ---- joining -------------------------------------------------------------------------------

    def join(self, rank: int, manifest: str = "") -> bool:
        """A rank has said Hello; returns whether it was the last one that was missing.

        `manifest`: the digest of its kernels.

        Raises:
            RankLost: there is no such rank, it was here already, or its kernels are not warm where
                they should be.
        """
        if rank in self._joined or rank not in self._members:
            raise RankLost(f"rank {rank} of {self._settings.ranks} joined, unexpectedly")
        if self._settings.cache.warmup and not manifest:
            raise RankLost(f"{self.names([rank])} joined without a proof of its kernels")
        self._joined.add(rank)
        return len(self._joined) == self._settings.ranks

    def ready(self, message: Ready) -> bool:
        """A rank has loaded its weights; returns whether all have.

        Raises:
            RankLost: it was ready already.
            ProtocolError: it holds another KV format than the others.
        """
        if message.rank in self._ready or message.rank not in self._members:
            raise RankLost(f"rank {message.rank} of {self._settings.ranks} is ready, unexpectedly")
        self._joined.add(message.rank)
        self._ready[message.rank] = message
        fingerprints = {rank.kv_fingerprint for rank in self._ready.values()}
        if len(fingerprints) > 1:
            raise ProtocolError(f"the ranks' KV formats differ: {sorted(fingerprints)}")
        return self.all_ready

    @property
    def all_ready(self) -> bool:
        return len(self._ready) == self._settings.ranks

    @property
    def count(self) -> int:
        """Ranks that are ready."""
        return len(self._ready)

    @property
    def missing(self) -> tuple[int, ...]:
        """Ranks that are not ready."""
        return tuple(rank for rank in self._members if rank not in self._ready)

    def tick(self, now: float) -> None:
        """See to the joining's deadline.

        Raises:
            RankLost: ranks have not said Hello in join_timeout; they are named.
        """
        if self._join_by is None:
            self._join_by = now + self._settings.join_timeout
        absent = [rank for rank in self._members if rank not in self._joined]
        if absent and now >= self._join_by:
            warm = " warm" if self._settings.cache.warmup else ""
            raise RankLost(
                f"{self.names(absent)} did not join{warm} in {self._settings.join_timeout:g} s; "
                f"{len(self._joined)} of {self._settings.ranks} ranks are here"
            )

    def names(self, ranks: Iterable[int]) -> str:
        """What errors call them."""
        if self._settings.parallelism.ranks == 1:
            return "rank 0"
        return ", ".join(map(self._numbering.name, ranks))

    # ---- what they have ------------------------------------------------------------------------

    @property
    def pages(self) -> int:
        """Page ids are the group's: as many as the smallest pool has."""
        return min(rank.pages for rank in self._ready.values())

    @property
    def endpoints(self) -> tuple[KvEndpoint, ...]:
        return tuple(self._ready[rank].endpoint for rank in sorted(self._ready))

    @property
    def kv_fingerprint(self) -> str:
        return self._ready[self._members[0]].kv_fingerprint

    @property
    def model_digest(self) -> str:
        first = self._members[0]
        return self._ready[first].model_digest if first in self._ready else ""

    @property
    def startup(self) -> tuple[tuple[str, float], ...]:
        """Seconds by phase, of the slowest of the ranks that are ready."""
        return slowest(rank.startup for rank in self._ready.values())

    @property
    def kernels(self) -> KernelsProof | None:
        """All ranks' proof in one; None until every rank has given one.

        The manifest is rank 0's, whose pod's warm-up the operator compares it with; compilations
        are counted over all ranks.
        """
        proofs = [self._ready[rank].kernels for rank in sorted(self._ready)]
        given = [proof for proof in proofs if proof is not None]
        if not self.all_ready or len(given) < len(proofs):
            return None
        heard = [self._heard[rank] for rank in self._members if rank in self._heard]
        compiles = sum(each.progress.compiles for each in heard)
        return replace(reduce(combined, given), compiles_after_ready=compiles)

    # ---- what they do --------------------------------------------------------------------------

    def fault(self, message: Fault) -> None:
        """Raises: RankLost: always, with what the rank said."""
        name = self.names([message.rank])
        raise RankLost(f"{name} failed: {message.code}: {message.message}")

    def progress(self, message: Progress, now: float) -> None:
        """A rank's watchdog has reported."""
        self._heard[message.rank] = Heard(message, now)

    @property
    def traffic(self) -> tuple[Traffic, ...]:
        """Messages between stages, by rank; none of a single rank."""
        if self._settings.parallelism.pp == 1:
            return ()
        heard = [self._heard[rank] for rank in self._members if rank in self._heard]
        return tuple(each.progress.traffic for each in heard)

    def culprit(self, step: int, now: float) -> str:
        """Who holds up `step`, the oldest in flight. dp rank 0 hears of all ranks, and names it."""
        split = self._settings.parallelism
        if self._dp_rank:
            return "dp rank 0's scheduler names who holds it up"
        return blame(self._heard, step, split.ranks, split.tp, now, dp=split.dp).why

    def dump(self, now: float) -> list[str]:
        """Every rank's state in a line of its own."""
        split = self._settings.parallelism
        return [
            describe(self._heard[rank], split.tp, now, dp=split.dp) for rank in sorted(self._heard)
        ]


def slowest(
    startups: Iterable[tuple[tuple[str, float], ...]],
) -> tuple[tuple[str, float], ...]:
    """The start that took longest in all."""
    return max(startups, key=lambda phases: sum(taken for _, taken in phases), default=())


def combined(one: KernelsProof, other: KernelsProof) -> KernelsProof:
    """The proof of both: the manifest is the first one's."""
    return replace(
        one,
        compiled=one.compiled + other.compiled,
        reused=one.reused + other.reused,
        seconds=max(one.seconds, other.seconds),
        compiles_after_ready=one.compiles_after_ready + other.compiles_after_ready,
    )
