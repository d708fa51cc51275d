"""Who of two replicas leads, by each one's own clock."""

import copy

import pytest
from pds_operator import errors
from pds_operator.run.lease import Lease
from pds_operator.settings import LeaseSettings, Settings

TERM = 15.0
HELD = 0.8 * TERM
"""A leader stops writing before anybody else may begin."""


class Leases:
    """The API server's one Lease, with its version."""

    def __init__(self) -> None:
        self.obj: dict | None = None
        self.version = 0
        self.trouble: Exception | None = None
        self.between = lambda: None
        """What others do between the read and the write of a replica."""

    async def get(self, kind, namespace, name):
        self._may()
        if self.obj is None:
            raise errors.Missing(404, "NotFound", name)
        copied = copy.deepcopy(self.obj)
        self.between()
        return copied

    async def create(self, obj):
        self._may()
        if self.obj is not None:
            raise errors.Conflict(409, "AlreadyExists", "pds-operator exists")
        return self._keep(obj)

    async def replace(self, obj):
        self._may()
        if obj["metadata"]["resourceVersion"] != str(self.version):
            raise errors.Conflict(409, "Conflict", "the object has been modified")
        return self._keep(obj)

    def _keep(self, obj):
        self.version += 1
        self.obj = copy.deepcopy(obj)
        self.obj["metadata"]["resourceVersion"] = str(self.version)
        return self.obj

    def _may(self):
        if self.trouble is not None:
            raise self.trouble


class Pair:
    """Two replicas; their clocks agree on how time passes, not on what time it is."""

    def __init__(self) -> None:
        self.now, self.api = 0.0, Leases()
        self.a, self.b = self._replica(0.0, 0.0), self._replica(5000.0, -3600.0)

    def _replica(self, ahead: float, off: float) -> Lease:
        settings = Settings(lease=LeaseSettings(seconds=TERM))
        clock, wall = lambda: self.now + ahead, lambda: 1_700_000_000 + self.now + off
        return Lease(self.api, settings, clock, wall)

    def held(self) -> tuple[bool, bool]:
        return self.a.held, self.b.held


@pytest.fixture
def pair() -> Pair:
    return Pair()


async def test_the_first_takes_it_and_keeps_it_as_long_as_it_renews(pair):
    for _ in range(20):
        await pair.a.once()
        await pair.b.once()
        assert pair.held() == (True, False)
        pair.now += TERM / 5
    assert pair.api.obj["spec"]["leaseTransitions"] == 0


async def test_of_two_that_make_it_at_once_one_does(pair):
    missing = pair.api.get

    async def both_find_nothing(*place):
        pair.api.get = missing
        with pytest.raises(errors.Missing):
            await missing(*place)
        await pair.b.once()
        raise errors.Missing(404, "NotFound", "pds-operator")

    pair.api.get = both_find_nothing
    with pytest.raises(errors.Conflict):
        await pair.a.once()
    assert pair.held() == (False, True)


async def test_who_does_not_renew_stops_before_another_may_begin(pair):
    await pair.a.once()
    await pair.b.once()
    pair.now = HELD - 0.1
    await pair.b.once()
    assert pair.held() == (True, False)
    pair.now = HELD
    assert pair.held() == (False, False)
    pair.now = TERM - 0.1
    await pair.b.once()
    assert pair.held() == (False, False)
    pair.now = TERM
    await pair.b.once()
    assert pair.held() == (False, True)
    assert pair.api.obj["spec"]["leaseTransitions"] == 1
    await pair.a.once()
    assert pair.held() == (False, True)


async def test_the_term_runs_from_the_last_renewal_that_was_seen(pair):
    """However long ago the clock of the other says that was."""
    await pair.a.once()
    pair.now = TERM - 1
    await pair.b.once()
    pair.now = TERM + 5
    await pair.b.once()
    assert not pair.b.held
    pair.now = 2 * TERM - 1
    await pair.b.once()
    assert pair.b.held


async def test_a_leader_that_hung_while_it_renewed_has_lost_it(pair):
    """Its term counts from when it asked, and its write meets another version."""
    await pair.a.once()
    await pair.b.once()
    written = pair.api.version

    def taken() -> None:
        pair.api.between = lambda: None
        pair.now = TERM + 1
        pair.api.obj["spec"]["holderIdentity"] = pair.b.identity
        pair.api._keep(pair.api.obj)

    pair.now, pair.api.between = TERM / 2, taken
    await pair.a.once()
    assert not pair.a.held
    assert pair.api.version == written + 1
    await pair.b.once()
    assert pair.held() == (False, True)


async def test_a_server_that_does_not_answer_takes_it_from_its_leader(pair):
    await pair.a.once()
    pair.api.trouble = errors.Throttled(429, "TooManyRequests", "try again later")
    pair.now = HELD - 0.1
    with pytest.raises(errors.Throttled):
        await pair.a.once()
    assert pair.a.held
    pair.now = HELD
    assert not pair.a.held
    pair.api.trouble = None
    await pair.a.once()
    assert pair.a.held


async def test_what_is_given_back_is_taken_at_once(pair):
    await pair.a.once()
    await pair.b.once()
    await pair.a.release()
    assert pair.held() == (False, False)
    await pair.b.once()
    assert pair.held() == (False, True)


async def test_what_is_another_s_by_now_is_not_given_back(pair):
    await pair.a.once()
    pair.api.obj["spec"]["holderIdentity"] = "other"
    pair.api._keep(pair.api.obj)
    written = pair.api.version
    await pair.a.release()
    assert pair.api.version == written
    assert pair.api.obj["spec"]["holderIdentity"] == "other"
