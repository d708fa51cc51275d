"""What a call needs of the router: pairs to try, and a place to report how that went."""

import logging

from pds_engine.errors import PdsError, Unavailable
from pds_engine.router.attempt import Attempt, AttemptFailure
from pds_engine.router.backends import Fleet, GroupState
from pds_engine.router.call import STREAMED, Call
from pds_engine.router.client import Client
from pds_engine.router.config import RouterConfig
from pds_engine.router.metrics import RequestPhase, RouterMetrics
from pds_engine.router.policy import Pick

logger = logging.getLogger(__name__)


class Pairs:
    """The groups as calls see them."""

    def __init__(self, config: RouterConfig, fleet: Fleet, metrics: RouterMetrics) -> None:
        self.config = config
        self.fleet = fleet
        self.metrics = metrics

    def pick(self, call: Call, excluded: set[str], like: GroupState | None = None) -> Pick | None:
        """The groups for the next attempt; with `like`, groups that can go on with its stream."""
        if call.path in STREAMED:
            return self.fleet.pick(call.affinity, excluded, like)
        found = self.fleet.routable(excluded) or self.fleet.routable(excluded, last_resort=True)
        any_one = sorted(found, key=lambda c: (c.outstanding, c.key))
        return Pick(any_one[0].key) if any_one else None

    def attempt(self, call: Call, pick: Pick, client: Client) -> Attempt:
        """Send the call to them.

        Raises:
            Unavailable: this router cannot sign, and they want it signed.
        """
        if pick.decode is not None and not self.fleet.keys:
            raise Unavailable(
                "prefill and decode groups take signed requests only", hint="set keys_dir"
            )
        if logger.isEnabledFor(logging.DEBUG):
            self._log_pick(call, pick)
        return Attempt(self.fleet, call, pick, client)

    def _log_pick(self, call: Call, pick: Pick) -> None:
        """Log which pods a request goes to."""
        pods = {"prefill": self.fleet[pick.prefill].found.pod}
        if pick.decode is not None:
            pods["decode"] = self.fleet[pick.decode].found.pod
        logger.debug("an attempt begins", extra={"request_id": call.request_id, **pods})

    def nothing_ready(self) -> PdsError:
        return Unavailable(self.fleet.shortage(), retry_after=1)

    def failed(self, call: Call, failure: AttemptFailure, phase: RequestPhase, again: bool) -> None:
        """An attempt failed; `again`: another is made, or the stream goes on elsewhere.

        A preempted one did not fail: `migrated` counts it.
        """
        if failure.preempted and again:
            return
        self.metrics.failed(failure.status, again)
        if failure.died:
            self.metrics.died(phase)
        logger.warning(
            "an attempt failed",
            extra={
                "request_id": call.request_id,
                "status": failure.status,
                "backend": failure.blamed,
                "again": again,
                "answer": failure.body[:300].decode(errors="replace"),
            },
        )

    def spent(self, call: Call, failure: AttemptFailure, pairs: int) -> None:
        """As many pairs failed with the request as may: it is not sent on again."""
        logger.error(
            "a request is given up: it may be what groups fail of",
            extra={
                "request_id": call.request_id,
                "pairs": pairs,
                "died": failure.died,
                "backend": failure.blamed,
            },
        )

    def migrated(self, call: Call, failure: AttemptFailure, tokens: int, seconds: float) -> None:
        """A stream that broke off goes on in another pair."""
        self.metrics.migrated(failure.reason, seconds)
        logger.log(
            logging.INFO if failure.preempted else logging.WARNING,
            "a stream goes on elsewhere",
            extra={
                "request_id": call.request_id,
                "reason": failure.reason,
                "tokens": tokens,
                "seconds": round(seconds, 3),
            },
        )
