"""Whether a Job is made twice for one wish of a user."""

from typing import Any

from pds_operator.facts.reading import revision_facts
from simulation.operators import KEY, SimulatedOperator
from simulation.server import ApiServer

Object = dict[str, Any]


class JobsOnce:
    """Knows the Jobs that were made since users asked for something last."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._made: set[str] = set()

    def forget(self) -> None:
        """Something else is asked for, or another PDServing asks."""
        self._made.clear()

    def made(self, operator: SimulatedOperator, job: Object) -> str:
        """What is wrong with making `job`; nothing, if nothing is."""
        name = job["metadata"]["name"]
        again = name in self._made
        self._made.add(name)
        # One of another life, or replica, may have heard of neither the Job nor the note.
        if not again or self._noted(name, self._server.objects) > self._known(operator, name):
            return ""
        return f"Job {name} is made twice"

    def _known(self, operator: SimulatedOperator, job: str) -> bool:
        if operator.reconciler is None:
            return False
        owned = operator.reconciler.store.owned(KEY).objects.items()
        return self._noted(job, {place: obj for place, (obj, _) in owned})

    @staticmethod
    def _noted(job: str, objects: dict[tuple[str, str], Object]) -> bool:
        stored = [obj for (kind, _), obj in objects.items() if kind == "ControllerRevision"]
        return any(job in revision_facts(obj, "chat").gave_way for obj in stored)
