"""A group that failed is made again after its backoff, whatever the clocks of nodes say."""

from typing import Any

from pds_operator import names
from simulation.clock import Clock
from simulation.kubelet import Group, Kubelet, Running

Object = dict[str, Any]
LATEST = 690.0
"""Its backoff, and that of a write that was refused, are 300 s each at the most."""
BETWEEN_ROUNDS = 35.0
"""At rest an operator looks this seldom. What is more is an absence, and not counted."""


class Punctual:
    """Measures by the time in which an operator could have done something."""

    def __init__(self, clock: Clock, kubelet: Kubelet) -> None:
        self._clock = clock
        self._able, self._looked_at = 0.0, clock.now
        self._failed: dict[Group, float] = {}
        kubelet.failed = self._fails  # type: ignore[method-assign]

    def begins(self) -> None:
        """A round of some operator."""
        self._able += min(BETWEEN_ROUNDS, self._clock.now - self._looked_at)
        self._looked_at = self._clock.now

    def _fails(self, pod: Running) -> None:
        self._failed.setdefault(pod.group, self._able)

    def late(self, obj: Object) -> str:
        """What is wrong with the time at which a pod is made; nothing, if nothing is."""
        labels = obj["metadata"]["labels"]
        role, index = labels[names.ROLE], int(labels[names.GROUP_INDEX])
        attempt = int(labels[names.ATTEMPT])
        self._failed.pop((role, index, attempt), None)  # an earlier group's of that name
        at = self._failed.pop((role, index, attempt - 1), self._able)
        if self._able - at <= LATEST:
            return ""
        return f"{obj['metadata']['name']} is made {self._able - at:.0f} s after its group failed"
