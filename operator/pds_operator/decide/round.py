"""One round: what it is decided on, and what has been decided so far. Pure."""

from dataclasses import dataclass, field

from pds_operator.decide.actions import Action, Problem
from pds_operator.decide.desired import Desired
from pds_operator.decide.fleet import Group, Phase
from pds_operator.facts.observed import Observed
from pds_operator.render.owner import Owner


@dataclass(slots=True)
class Round:
    """Its inputs stay as they are; actions, problems and wake-ups are collected."""

    observed: Observed
    asked: Desired
    """What the user wants, with the control key that new revisions have."""
    now: float
    """Unix seconds."""
    fleet: tuple[Group, ...] = ()
    """The groups that `observed.pods` make."""
    actions: list[Action] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    wake: float | None = None
    """When to look again although nothing has changed."""
    unsettled: bool = False
    """Whether routers and leaders should be asked often."""

    @property
    def owner(self) -> Owner:
        """The PDServing."""
        return self.asked.owner

    def staying(self, digest: str) -> list[Group]:
        """The groups of a revision that do not leave."""
        return [g for g in self.fleet if g.revision == digest and g.phase is not Phase.LEAVING]

    def wake_at(self, moment: float) -> None:
        """Look again at `moment`, or before."""
        self.wake = moment if self.wake is None else min(self.wake, moment)

    def report(self, reason: str, message: str) -> None:
        """Collect a problem that a person should know."""
        self.problems.append(Problem(reason, message))
