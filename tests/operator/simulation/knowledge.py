"""What an operator must know by when, whatever became of its watches."""

from pds_operator import names
from simulation.clock import Clock
from simulation.judge import Violation
from simulation.operators import KEY, SimulatedOperator
from simulation.server import ApiServer

KNOWN_WITHIN = 105.0
"""A watch that is dead, though nobody closed it, is begun again by then."""
HEARD_WITHIN = 10.0
"""The same of one that lags or breaks off."""


class Knowledge:
    """Makes watches fall silent, and asks later whether it was noticed."""

    def __init__(self, clock: Clock, server: ApiServer) -> None:
        self._clock, self._server = clock, server
        self._silences: dict[tuple[str, int, str], float] = {}
        """By operator, its life and kind: when its watch fell silent last."""

    def silence(self, operator: SimulatedOperator, kind: str) -> None:
        """Packets of a watch are dropped both ways from now on."""
        operator.fall_silent(kind)
        self._silences[operator.name, operator.life, kind] = self._clock.now
        wait = KNOWN_WITHIN - HEARD_WITHIN
        self._clock.after(wait, self._must_know, operator, operator.life, kind, self._clock.now)

    def all_known_at(self) -> float:
        """When every silence so far has been noticed."""
        return max(self._silences.values(), default=0.0) + KNOWN_WITHIN

    def _must_know(self, operator: SimulatedOperator, life: int, kind: str, since: float) -> None:
        version = self._server.version
        self._clock.after(HEARD_WITHIN, self._knows, operator, life, kind, since, version)

    def _knows(
        self, operator: SimulatedOperator, life: int, kind: str, since: float, version: int
    ) -> None:
        again = self._silences[operator.name, life, kind] != since
        if operator.reconciler is None or life != operator.life or again:
            return
        if name := self._unheard(operator, kind, version):
            raise Violation(f"{operator.name} has not heard of {kind} {name} for too long")

    def _unheard(self, operator: SimulatedOperator, kind: str, version: int) -> str:
        """An object of which `operator` knows less than what stood at `version`."""
        if operator.reconciler is None or kind == names.KIND:
            return ""
        owned = operator.reconciler.store.owned(KEY)
        shelves = (owned.pods, owned.routers, owned.warmups, owned.sets)
        known = {name: at for shelf in shelves for name, (_, at) in shelf.items()}
        known |= {name: at for (own, name), (_, at) in owned.objects.items() if own == kind}
        for obj in self._server.all(kind):
            name, written = obj["metadata"]["name"], int(obj["metadata"]["resourceVersion"])
            followed = names.NAME in obj["metadata"].get("labels", {})
            if followed and known.get(name, 0) < written <= version:
                return str(name)
        return ""
