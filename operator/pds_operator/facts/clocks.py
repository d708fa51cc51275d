"""Whose clock a time was written by, and what it comes to by the API server's. Pure.

creationTimestamp and managedFields[].time are by the API server's clock. What a kubelet writes
(containers' finishedAt, conditions' lastTransitionTime) is by its node's, which may be an hour off.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pds_operator import names
from pds_operator.facts.observed import LeaderState, RouterView, seconds

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StatusWindow:
    """Between which moments of the API server's clock a pod's kubelet can have written a status."""

    first: float
    """The pod was made, or we wrote its gate last, which its readiness follows."""
    last: float | None
    """Somebody else last wrote its status; None: the API server does not say."""

    def ended(self, at: float | None) -> float | None:
        """When a container ended. A clock that cannot be right counts for nothing."""
        if at is None or self._possible(at):
            return at
        return self.first if self.last is None else max(self.first, self.last)

    def turned_ready(self, at: float | None) -> float | None:
        """When the pod turned ready: with its gate, where its node's clock cannot be right.

        The kubelet writes the status for other reasons later on, and would put it off each time.
        """
        return at if at is None or self._possible(at) else self.first

    def _possible(self, at: float) -> bool:
        # Times are written in whole seconds.
        return self.first - 1.0 <= at and (self.last is None or at <= self.last + 1.0)


def status_window(meta: Object, created: float) -> StatusWindow:
    """Of a pod's metadata; `created` is its creationTimestamp."""
    ours, others = created, None
    for entry in meta.get("managedFields") or []:
        at = _moment(entry.get("time")) if entry.get("subresource") == "status" else None
        if at is None:
            continue
        if entry.get("manager") == names.MANAGER:
            ours = max(ours, at)
        else:
            others = max(others or 0.0, at)
    return StatusWindow(ours, others)


TOLERATED = 5.0
"""Seconds between two clocks that are not worth a word."""
STEPS = (5, 15, 40, 100, 250, 650, 1500, 4000, 10_000, 25_000, 100_000)
"""What a message says of a difference, in seconds: it is measured to a second, and would be news
each time that the measure changes."""


def skew(
    states: Mapping[str, LeaderState], routers: Iterable[RouterView], nodes: Mapping[str, str]
) -> str:
    """What is wrong with clocks, for a condition (`ClockSkew`); empty when nothing is known to be.

    nodes: by leader pod, where that is known.
    """
    found = {name: state.clock for name, state in states.items()}
    for view in routers:
        for name, offset in view.clocks.items():
            if abs(offset) > abs(found.get(name, 0.0)):
                found[name] = offset
    wrong = sorted(name for name, offset in found.items() if abs(offset) > TOLERATED)
    if not wrong:
        return ""
    lines = [_ahead(name, nodes.get(name, ""), found[name]) for name in wrong[:5]]
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return f"{'; '.join(lines)}{more}: set the clocks of the nodes (NTP)"


def _ahead(pod: str, node: str, offset: float) -> str:
    where = f" on node {node}" if node else ""
    way = "ahead" if offset > 0 else "behind"
    least = max(step for step in STEPS if step <= abs(offset))
    return f"the clock of pod {pod}{where} is more than {least} s {way}"


def _moment(text: str | None) -> float | None:
    try:
        return seconds(text)
    except ValueError:
        return None
