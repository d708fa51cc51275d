"""One State of a group, from those of its dp ranks (pure)."""

from collections.abc import Sequence
from functools import reduce

from msgspec.structs import replace

from pds_engine.messages import STATE_METRICS, State
from pds_engine.scheduler.ranks import combined, slowest


def merged(states: Sequence[State]) -> State:
    """What the group reports: numbers are summed, or the greatest counts, as StateMetric says."""
    if len(states) == 1:
        return states[0]
    first = states[0]
    numbers = {
        field: (sum if metric.over_ranks == "sum" else max)(getattr(s, field) for s in states)
        for field, metric in STATE_METRICS.items()
    }
    proofs = [state.kernels for state in states]
    given = [proof for proof in proofs if proof is not None]
    return replace(
        first,
        **numbers,
        kernels=reduce(combined, given) if len(given) == len(states) else None,
        missing=tuple(sorted(rank for state in states for rank in state.missing)),
        startup=slowest(state.startup for state in states),
        traffic=tuple(each for state in states for each in state.traffic),
    )
