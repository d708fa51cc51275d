"""Workers join, become ready, and are named when they do not."""

from typing import Any

import pytest
from bounds import bounded
from msgspec.structs import replace
from pds_engine.errors import ProtocolError, RankLost, StageTimeout
from pds_engine.messages import KernelsProof, KvEndpoint, Progress, Ready, Traffic
from pds_engine.scheduler.party import Party
from pds_engine.scheduler.ranks import Ranks

FOUR = bounded(pp=2, tp=2, join_timeout=30.0)


def ready(rank: int, pages: int = 64, kernels: KernelsProof | None = None, kv: str = "f") -> Ready:
    endpoint = KvEndpoint(rank=rank, shard=b"", pages=pages, backends={})
    return Ready(rank=rank, pages=pages, kv_fingerprint=kv, endpoint=endpoint, kernels=kernels)


def progress(rank: int, **keys: Any) -> Progress:
    values = {"done": -1, "step": 0, "doing": "compute", "peer": -1, "seconds": 1.0, "mailbox": 0}
    traffic = Traffic(rank=rank, steps=rank)
    return Progress(rank=rank, plans=("step 0: 1 rows",), traffic=traffic, **(values | keys))


def test_the_last_rank_to_join_completes_the_group() -> None:
    ranks = Ranks(FOUR)
    assert [ranks.join(rank) for rank in (2, 0, 3, 1)] == [False, False, False, True]


@pytest.mark.parametrize("rank", [0, 4, -1])
def test_a_rank_that_is_here_or_cannot_be_is_refused(rank: int) -> None:
    ranks = Ranks(FOUR)
    ranks.join(0)
    with pytest.raises(RankLost, match=f"rank {rank} of 4 joined"):
        ranks.join(rank)


def test_ranks_that_do_not_join_are_named() -> None:
    ranks = Ranks(FOUR)
    ranks.tick(100.0)
    ranks.join(0)
    ranks.join(3)
    ranks.tick(129.9)
    with pytest.raises(RankLost) as raised:
        ranks.tick(130.0)
    assert raised.value.message == (
        "rank 1 (stage 0), rank 2 (stage 1) did not join in 30 s; 2 of 4 ranks are here"
    )


def test_nobody_is_missed_once_all_have_joined() -> None:
    ranks = Ranks(FOUR)
    ranks.tick(0.0)
    for rank in range(4):
        ranks.join(rank)
    ranks.tick(1e6)
    assert ranks.missing == (0, 1, 2, 3)
    assert [ranks.ready(ready(rank, pages=60 + rank)) for rank in (1, 0, 2, 3)] == [
        False,
        False,
        False,
        True,
    ]
    assert (ranks.missing, ranks.pages) == ((), 60)
    assert [endpoint.rank for endpoint in ranks.endpoints] == [0, 1, 2, 3]


def test_ranks_of_two_formats_are_no_group() -> None:
    ranks = Ranks(FOUR)
    ranks.ready(ready(0))
    with pytest.raises(ProtocolError, match="formats differ"):
        ranks.ready(ready(1, kv="other"))


def test_the_proof_is_all_ranks_together() -> None:
    ranks = Ranks(bounded(pp=2))
    proof = KernelsProof(manifest="m", compiled=1, reused=2, seconds=3.0)
    ranks.ready(ready(1, kernels=KernelsProof(manifest="n", compiled=2, reused=1, seconds=4.0)))
    assert ranks.kernels is None
    ranks.ready(ready(0, kernels=proof))
    ranks.progress(progress(0, compiles=0), 1.0)
    ranks.progress(progress(1, compiles=5), 1.0)
    assert ranks.kernels == KernelsProof(
        manifest="m", compiled=3, reused=3, seconds=4.0, compiles_after_ready=5
    )


def test_without_one_rank_s_proof_nothing_is_proven() -> None:
    ranks = Ranks(bounded(pp=2))
    ranks.ready(ready(0, kernels=KernelsProof(manifest="m", compiled=0, reused=2, seconds=1.0)))
    ranks.ready(ready(1))
    assert ranks.kernels is None


def test_traffic_is_that_of_stages_alone() -> None:
    for settings, counted in ((bounded(), ()), (bounded(pp=2), (0, 1))):
        ranks = Ranks(settings)
        for rank in range(settings.ranks):
            ranks.progress(progress(rank), 1.0)
        assert tuple(each.steps for each in ranks.traffic) == counted


def test_a_step_that_does_not_end_names_the_stage(bench) -> None:
    b = bench(pp=2, ranks=(64, 64))
    b.submit("r", 8, 4)
    b.plan()
    for rank, keys in ((0, {"doing": "idle", "done": 1}), (1, {})):
        b.core.handle(Party("watch", str(rank)), progress(rank, **keys), b.now + 59.5)
    with pytest.raises(StageTimeout) as raised:
        b.core.tick(b.now + 60.5)
    assert raised.value.message == (
        "step 0 (1 rows) is not done after 60.5 s, 3 steps are in flight: "
        "rank 1 (stage 1) was computing step 0 for 2.0 s"
    )
    assert b.core.ranks.dump(b.now + 60.5)[1] == (
        "rank 1 (stage 1) was computing step 0; heard 1.0 s ago; step -1 is done; "
        "0 orders wait; last plans: step 0: 1 rows"
    )


def test_the_start_that_took_longest_is_the_group_s() -> None:
    ranks = Ranks(FOUR)
    assert ranks.startup == ()
    quick, slow = (("import", 3.0), ("weights", 1.0)), (("import", 1.0), ("weights", 4.0))
    for rank, startup in enumerate((quick, slow, (), quick)):
        ranks.ready(replace(ready(rank), startup=startup))
    assert ranks.startup == slow
