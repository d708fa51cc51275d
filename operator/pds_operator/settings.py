"""The operator's settings: one frozen model, from `--config FILE` with PDS_OPERATOR_* on top.

The chart renders the file from its values. Unknown keys are refused by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pds_operator.errors import SettingsError

Object = dict[str, Any]


class Section(BaseModel):
    """A part of the settings: frozen, camelCase outside, closed to unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )


class PodDefaults(Section):
    """What a site adds to every pod. Enters engine pods only when a new revision is rendered."""

    volumes: list[Object] = []
    volume_mounts: list[Object] = []
    env: list[Object] = []
    command_prefix: str = ""
    """The folder of `pds-engine` and `pds-router`; empty: they are on the image's PATH."""
    allow_host_path: bool = False
    """Whether a PDServing may mount a path of the node (cache volume or pod template)."""


class ImageSettings(Section):
    """The engine image of a PDServing that names none."""

    repository: str = "ghcr.io/pdserving/pds-engine"
    tag: str = "0.1.0"
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"

    @property
    def reference(self) -> str:
        """`repository:tag`, or the repository alone where it carries a digest."""
        return f"{self.repository}:{self.tag}" if self.tag else self.repository


class LeaseSettings(Section):
    """The Lease by which one of several replicas writes."""

    enabled: bool = True
    name: str = "pds-operator"
    seconds: float = Field(15, gt=1)


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        env_prefix="PDS_OPERATOR_",
        env_nested_delimiter="__",
    )

    namespaces: list[str] = []
    """The namespaces to serve; empty: all of them (needs the chart's cluster mode)."""
    namespace: str = "default"
    """Where the operator itself lives: its Lease, and who may reach engine pods."""
    image: ImageSettings = ImageSettings()
    pod_defaults: PodDefaults = PodDefaults()
    router_cluster_role: str = "pdserving-router"
    network_policies: bool = True
    pod_disruption_budgets: bool = True
    metrics_from: list[Object] = []
    """NetworkPolicy peers that may scrape port 9090."""
    lease: LeaseSettings = LeaseSettings()
    liveness_port: int = Field(8080, ge=0, le=65535)
    """Serves /healthz and /metrics; 0: not served."""
    stale_seconds: float = Field(120, gt=0)
    """/healthz fails when a dirty object has waited so long for its reconcile."""
    resync_seconds: float = Field(60, gt=0)
    probe_seconds: float = Field(1.0, gt=0)
    """How often pods are asked while something is unsettled; ten times as long otherwise."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Variables win over the file, whose content arrives as init arguments."""
        return (env_settings, init_settings)


def load(path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of `path` (YAML or JSON), under variables, under `overrides` (field names).

    Raises:
        SettingsError: the file cannot be read, a key is unknown or a value is out of range.
    """
    try:
        tree = yaml.safe_load(path.read_text()) if path else {}
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read the settings {path}: {error}") from error
    if not isinstance(tree, dict | None):
        raise SettingsError(f"the settings {path} are not a mapping")
    try:
        settings = Settings(**(tree or {}))
        given = {key: value for key, value in (overrides or {}).items() if value is not None}
        return settings.model_copy(update=given)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingsError(f"settings key {key}: {first['msg']}") from error
