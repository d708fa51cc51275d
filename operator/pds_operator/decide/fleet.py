"""Groups, read from their pods: which live, which have failed, which leave. Pure."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from pds_operator import names
from pds_operator.facts.observed import Pod

STEADY_SECONDS = 600.0
"""An attempt that was up for so long starts its failures from nothing again."""


STUCK_SECONDS = 30.0
"""A kubelet that lives has removed a pod so long after its grace."""


class Phase(Enum):
    """Where the newest attempt of a group stands."""

    STARTING = "starting"
    """Pods missing, unscheduled, warming up, loading or joining."""
    UP = "up"
    """Every pod's engine has started; ready or not for the moment."""
    FAILED = "failed"
    """A pod ended or vanished: the group is over, and is made again after its backoff."""
    EVICTED = "evicted"
    """Somebody deletes a pod of it: it drains by itself, and is replaced at once."""
    LEAVING = "leaving"
    """We drain it; it is not replaced."""


@dataclass(frozen=True)
class Group:
    """The newest attempt of one group, with what older attempts left behind.

    What follows from its pods is worked out once: a round asks for it many times.
    """

    role: str
    index: int
    attempt: int
    revision: str
    size: int
    """Pods that it should have."""
    pods: tuple[Pod, ...]
    remnants: tuple[Pod, ...] = ()

    @cached_property
    def leader(self) -> Pod | None:
        """The pod that serves HTTP."""
        return next((pod for pod in self.pods if pod.leader), None)

    @cached_property
    def phase(self) -> Phase:
        """See `Phase`."""
        if any(pod.draining for pod in self.pods):
            return Phase.LEAVING
        if any(pod.failed for pod in self.pods):
            return Phase.FAILED
        if any(pod.deleting or pod.lost for pod in self.pods):
            return Phase.EVICTED
        if self.missing:
            begun = any(pod.started for pod in self.pods)
            return Phase.FAILED if begun else Phase.STARTING
        return Phase.UP if all(pod.started for pod in self.pods) else Phase.STARTING

    @cached_property
    def missing(self) -> tuple[int, ...]:
        """Rank pods that do not exist."""
        there = {pod.rank_pod for pod in self.pods}
        return tuple(index for index in range(self.size) if index not in there)

    @cached_property
    def ready(self) -> bool:
        """Routed to: the leader's readiness includes the gate."""
        leader = self.leader
        return (
            self.phase is Phase.UP
            and leader is not None
            and leader.ready
            and all(pod.containers_ready for pod in self.pods)
        )

    def available(self, now: float, min_ready_seconds: float) -> bool:
        """Ready for so long, and no sidecar of it about to crash again."""
        if any(pod.crashing(now) for pod in self.pods):
            return False
        due = self.available_at(min_ready_seconds)
        return self.ready and (min_ready_seconds <= 0 or (due is not None and due <= now))

    def available_at(self, min_ready_seconds: float) -> float | None:
        """When it will have been ready for so long; None while it is not ready."""
        leader = self.leader
        if not self.ready or leader is None or leader.ready_since is None:
            return None
        return leader.ready_since + min_ready_seconds

    @cached_property
    def unscheduled(self) -> tuple[Pod, ...]:
        """Pods that wait for a node."""
        return tuple(pod for pod in self.pods if not pod.scheduled and not pod.failed)

    @cached_property
    def born(self) -> float:
        """When its first pod was made."""
        return min(pod.created for pod in self.pods)

    def stuck(self, now: float) -> bool:
        """Its pods should have gone long ago: their node is dead, and they may stay for a week."""
        return all(
            pod.gone_by is not None and pod.gone_by + STUCK_SECONDS < now for pod in self.pods
        )

    @cached_property
    def failures(self) -> int:
        """Failures in a row before this attempt."""
        return max((pod.failures for pod in self.pods), default=0)

    @cached_property
    def disruptions(self) -> int:
        """Disruptions in a row before this attempt."""
        return max((pod.disruptions for pod in self.pods), default=0)

    @cached_property
    def culprit(self) -> Pod | None:
        """The pod whose end ended the group: one that was disrupted, or that failed first."""

        def order(pod: Pod) -> tuple[bool, float, str]:
            return not pod.disrupted, pod.failed_at or pod.created, pod.name

        return min((pod for pod in self.pods if pod.failed), key=order, default=None)

    @property
    def misconfigured(self) -> bool:
        """It says that its configuration cannot work: trying again cannot help."""
        return any(pod.failed and pod.exit_code == names.CONFIG_ERROR for pod in self.pods)

    @property
    def never_served(self) -> bool:
        """Of a revision that is replaced: not worth keeping for its floor, as it never served.

        A group that was evicted, or has failed once, may have served, and is made again.
        """
        if self.phase is Phase.STARTING:
            if self.leader is not None and self.leader.started:
                return False  # it may have served: another pod of it is new
            refused = any(pod.unscheduled for pod in self.unscheduled)
            return self.attempt == 0 or self.failures > 1 or refused
        return self.phase is Phase.FAILED and (self.misconfigured or self.failures > 1)

    @property
    def warm(self) -> bool:
        """Every pod's warm-up wrote a proof without an error."""
        return not self.missing and all(
            pod.proof is not None and pod.proof.manifest and not pod.proof.error
            for pod in self.pods
        )

    def next_failures(self) -> int:
        """Failures in a row when the next attempt starts."""
        culprit = self.culprit
        if culprit is None or culprit.disrupted:
            return self.failures
        lived = (culprit.failed_at or culprit.created) - culprit.created
        return 1 if lived >= STEADY_SECONDS else self.failures + 1

    def next_disruptions(self) -> int:
        """Disruptions in a row when the next attempt starts."""
        return self.disruptions + 1 if self.culprit is not None and self.culprit.disrupted else 0

    def retry_at(self) -> float:
        """When the next attempt may start."""
        culprit = self.culprit
        if culprit is None:
            return 0.0
        ends = self.next_disruptions() or self.next_failures()
        return (culprit.failed_at or culprit.created) + backoff(ends)


def backoff(failures: int) -> float:
    """Seconds before an attempt that follows `failures` in a row: 0, 10, 20, 40 … 300."""
    return 0.0 if failures <= 1 else min(300.0, 10.0 * 2 ** (failures - 2))


def groups(pods: Iterable[Pod], size_of: Callable[[str, str], int]) -> list[Group]:
    """The groups of all roles, by role and index; `size_of(revision, role)` is pods per group."""
    attempts: Mapping[tuple[str, int], dict[int, list[Pod]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for pod in pods:
        attempts[pod.role, pod.group][pod.attempt].append(pod)
    result = []
    order = sorted(attempts.items(), key=lambda item: (names.ROLES.index(item[0][0]), item[0][1]))
    for (role, index), by_attempt in order:
        newest = max(by_attempt)
        own = tuple(sorted(by_attempt.pop(newest), key=lambda pod: pod.rank_pod))
        remnants = tuple(
            sorted((pod for old in by_attempt.values() for pod in old), key=lambda pod: pod.name)
        )
        revision = own[0].revision
        result.append(Group(role, index, newest, revision, size_of(revision, role), own, remnants))
    return result
