"""What the user wants, as a round takes it. Pure."""

from dataclasses import dataclass
from typing import Any

from pds_operator import revision
from pds_operator.render.owner import Owner
from pds_operator.schema import PDServingSpec, RolloutSpec
from pds_operator.settings import Settings

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Desired:
    """What the user wants."""

    owner: Owner
    generation: int
    raw: Object
    spec: PDServingSpec
    settings: Settings
    rotate: str = ""
    """The annotation rotate-keys: each new value asks for a new control key."""
    key: str = ""
    """The id of the control key that new pods mount; the first key has none."""

    @property
    def digest(self) -> str:
        """The revision that the spec asks for, with the control key of now."""
        return revision.digest(self.raw, self.key)

    @property
    def rollout(self) -> RolloutSpec:
        """`spec.rollout`, empty where it is left out."""
        return self.spec.rollout or RolloutSpec()
