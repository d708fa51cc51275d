"""What the user wants, as a round takes it. Pure."""

from dataclasses import dataclass
from typing import Any

from pds_operator import revision
from pds_operator.build.owner import Owner
from pds_operator.settings import Settings
from pds_operator.spec import PDServingSpec, RolloutSpec

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Desired:
    """What the user wants."""

    owner: Owner
    generation: int
    raw: Object
    spec: PDServingSpec
    settings: Settings

    @property
    def digest(self) -> str:
        """The revision that the spec asks for."""
        return revision.digest(self.raw)

    @property
    def rollout(self) -> RolloutSpec:
        """`spec.rollout`, empty where it is left out."""
        return self.spec.rollout or RolloutSpec()
