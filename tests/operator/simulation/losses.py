"""What was lost by something else than the operator, and who has heard of it."""

from collections.abc import Iterable

from simulation.clock import Clock
from simulation.kubelet import Running
from simulation.operators import KEY, SimulatedOperator

UNHEARD_SECONDS = 12.0
"""Everybody has heard of a loss by then: a node is missed within 4 s, a watch breaks off for 6."""


class Losses:
    """Keeps them for a minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lost: list[tuple[float, Running]] = []
        """When each pod was."""
        self._blind: dict[str, tuple[float, list[Running]]] = {}
        """By operator, when its round began, and the losses that it had not heard of then."""

    def add(self, pods: Iterable[Running]) -> None:
        """They are lost now."""
        self._lost += [(self._clock.now, pod) for pod in pods]

    def begins(self, operator: SimulatedOperator) -> None:
        """A round of `operator` begins: what it decides on is known now."""
        self._blind[operator.name] = self._clock.now, self._unheard(operator)

    def missed(self, operator: SimulatedOperator) -> list[str]:
        """Roles of the losses that this round of `operator` was decided on without."""
        began, blind = self._blind[operator.name]
        later = [pod for at, pod in self._lost if at >= began]
        return [pod.group[0] for pod in [*blind, *later]]

    def lately(self) -> bool:
        """Whether something was lost so lately that not everybody knows."""
        return any(at > self._clock.now - UNHEARD_SECONDS for at, _ in self._lost)

    def _unheard(self, operator: SimulatedOperator) -> list[Running]:
        """Lost pods that are well for all that `operator` knows."""
        if operator.reconciler is None:
            return []
        self._lost = [(at, pod) for at, pod in self._lost if at > self._clock.now - 60.0]
        known = operator.reconciler.store.owned(KEY).pods
        facts = [(pod, known[pod.name][0]) for _, pod in self._lost if pod.name in known]
        return [
            pod
            for pod, seen in facts
            if seen.uid == pod.uid and seen.ready and not (seen.failed or seen.deleting)
        ]
