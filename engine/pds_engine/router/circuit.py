"""The circuit of one backend: a pure state machine; time enters as an argument.

closed ──open_after failures──▶ open ──its time is up──▶ half open ──success──▶ closed
                                 ▲──────────failure, time doubled───────┘
"""

from dataclasses import dataclass
from typing import Literal

CircuitPhase = Literal["closed", "open", "halfOpen"]


@dataclass(frozen=True, slots=True)
class CircuitLimits:
    open_after: int = 3
    """Failures in a row that open it."""
    seconds: float = 1.0
    longest: float = 30.0


@dataclass(frozen=True, slots=True)
class Circuit:
    """`failures` in a row; open until `until`; `trial` is under way when half open."""

    failures: int = 0
    until: float | None = None
    opened: int = 0
    """Times it opened in a row."""
    trial: bool = False

    def phase(self, now: float) -> CircuitPhase:
        if self.until is None:
            return "closed"
        return "open" if now < self.until else "halfOpen"

    def admits(self, now: float) -> bool:
        """A request may be sent: always when closed, one at a time when half open."""
        phase = self.phase(now)
        return phase == "closed" or (phase == "halfOpen" and not self.trial)


def tried(circuit: Circuit, now: float) -> Circuit:
    """A request is being sent."""
    if circuit.phase(now) != "halfOpen":
        return circuit
    return Circuit(circuit.failures, circuit.until, circuit.opened, trial=True)


def succeeded(circuit: Circuit) -> Circuit:
    """A request ended as it should."""
    return circuit if circuit == Circuit() else Circuit()


def spared(circuit: Circuit) -> Circuit:
    """A request ended that says nothing of the backend (a client left): another may try."""
    if not circuit.trial:
        return circuit
    return Circuit(circuit.failures, circuit.until, circuit.opened)


def failed(circuit: Circuit, now: float, limits: CircuitLimits) -> Circuit:
    """A request failed through the backend's own fault."""
    failures = circuit.failures + 1
    phase = circuit.phase(now)
    if phase == "open" or (phase == "closed" and failures < limits.open_after):
        return Circuit(failures, circuit.until, circuit.opened)
    wait = min(limits.seconds * 2.0**circuit.opened, limits.longest)
    return Circuit(failures, now + wait, circuit.opened + 1)
