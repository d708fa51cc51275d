"""The spec's compile cache: its volume, and what warms it up."""

from typing import Annotated, Literal

from pydantic import Field

from pds_operator.schema.fields import (
    LabelValue,
    Name,
    Path,
    Quantity,
    SpecModel,
    rule,
    rules,
    with_rules,
)


class CacheClaim(SpecModel):
    size: Quantity
    storage_class_name: Annotated[str, Field(max_length=253)] | None = None
    access_modes: (
        Annotated[
            list[Literal["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"]],
            Field(min_length=1, max_length=3),
        ]
        | None
    ) = None
    """Default: [ReadWriteMany]."""


class EmptyObject(SpecModel):
    """`{}`."""


class CacheVolume(SpecModel):
    model_config = with_rules(
        rules(
            (
                "[has(self.claim), has(self.existingClaim), has(self.hostPath), "
                "has(self.ephemeral)].filter(x, x).size() == 1",
                "exactly one of claim, existingClaim, hostPath and ephemeral",
            ),
            (
                "!has(self.retain) || !self.retain || has(self.claim)",
                "retain keeps the claim that the operator makes: it needs claim",
            ),
        )
    )
    claim: CacheClaim | None = None
    existing_claim: Name | None = None
    host_path: Path | None = None
    ephemeral: EmptyObject | None = None
    retain: bool | None = None
    """Keep the claim when the PDServing is deleted."""


class WarmupSpec(SpecModel):
    model_config = with_rules(
        rules(
            (
                "!has(self.targets) || !has(self.enabled) || self.enabled",
                "warmup.targets needs warmup.enabled: without warm-up nothing is compiled ahead",
            ),
            (
                "!has(self.targets) || self.targets.all(t, self.targets.exists_one(o, o == t))",
                "warmup.targets names a GPU type twice",
            ),
            (
                "!has(self.nodeSelector) || has(self.targets)",
                "warmup.nodeSelector is of the Jobs of warmup.targets: give targets, too",
            ),
        )
    )
    enabled: bool | None = None
    """Default: true where compileCache is given."""
    workers: Annotated[int, Field(ge=1, le=256)] | None = None
    timeout_seconds: Annotated[int, Field(ge=1, le=86400)] | None = None
    targets: (
        Annotated[
            list[Annotated[str, Field(pattern="^sm_[0-9]{2,3}$", max_length=6)]],
            Field(max_length=4),
        ]
        | None
    ) = None
    """GPU types, as sm_90, for which a Job compiles on nodes without GPUs. No pod waits for it."""
    node_selector: Annotated[dict[str, LabelValue], Field(max_length=16)] | None = None
    """Of the nodes for these Jobs. Default: any."""


class CompileCacheSpec(SpecModel):
    model_config = with_rules(
        rule(
            "!has(self.warmup) || !has(self.warmup.targets) || "
            "(has(self.volume) && !has(self.volume.ephemeral))",
            "warmup.targets fills a volume that pods share: compileCache.volume must be claim, "
            "existingClaim or hostPath",
        )
    )
    volume: CacheVolume | None = None
    warmup: WarmupSpec | None = None
