"""The spec of a PDServing as the user writes it: frozen models, from which the CRD is generated.

Nothing has a default here: a field that is left out stays out, of the revision's hash too, so that
neither a new CRD nor a new operator changes what an object says. What a missing field means is
said where it is used (`build`), and frozen into each revision when it is rendered.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from pds_operator.errors import SpecError
from pds_operator.schema.cache import CompileCacheSpec as CompileCacheSpec
from pds_operator.schema.engine import EngineSpec as EngineSpec
from pds_operator.schema.fields import (
    Count,
    Dtype,
    FreeObject,
    IntOrPercent,
    Name,
    Path,
    Quantity,
    Seconds,
    SpecModel,
    rule,
    rules,
    with_rules,
)


class ClaimPath(SpecModel):
    claim_name: Name
    path: Annotated[str, Field(max_length=1024)] | None = None
    """The model's folder inside the claim; left out: its root."""


class ModelImage(SpecModel):
    reference: Annotated[str, Field(min_length=1, max_length=512)]
    """An OCI image whose content is mounted read-only."""
    path: Annotated[str, Field(max_length=1024)] | None = None
    """The model's folder inside the image; left out: its root."""


class ModelSource(SpecModel):
    model_config = with_rules(
        rule(
            "[has(self.path), has(self.pvc), has(self.image)].filter(x, x).size() == 1",
            "exactly one of path, pvc and image says where the model is",
        )
    )
    path: Path | None = None
    """A folder inside the container."""
    pvc: ClaimPath | None = None
    image: ModelImage | None = None


class ModelSpec(SpecModel):
    name: Annotated[str, Field(min_length=1, max_length=256)]
    """What clients send as "model"."""
    source: ModelSource
    dtype: Dtype | None = None
    """Default: bfloat16."""


class Parallelism(SpecModel):
    """Ranks of a group = pp·tp·dp; tp is the size of one attention group."""

    model_config = with_rules(
        rule(
            "!has(self.layers) || self.layers.size() == (has(self.pp) ? self.pp : 1)",
            "layers must have one count for each of the pp stages",
        )
    )
    pp: Count | None = None
    tp: Count | None = None
    dp: Count | None = None
    ep: bool | None = None
    """Ranks of a stage have some experts each, whole. Default: all, each by its columns."""
    layers: (
        Annotated[list[Annotated[int, Field(ge=1, le=1024)]], Field(min_length=1, max_length=64)]
        | None
    ) = None
    """Layers of each stage; left out: so that the largest stage has the fewest parameters."""


class Resources(SpecModel):
    requests: Annotated[dict[str, Quantity], Field(max_length=32)] | None = None
    limits: Annotated[dict[str, Quantity], Field(max_length=32)] | None = None


_PP_TP_DP = (
    "(has(self.parallelism) ? "
    "(has(self.parallelism.pp) ? self.parallelism.pp : 1) * "
    "(has(self.parallelism.tp) ? self.parallelism.tp : 1) * "
    "(has(self.parallelism.dp) ? self.parallelism.dp : 1) : 1)"
)
_PER_POD = "(has(self.ranksPerPod) ? self.ranksPerPod : 1)"
_GPU = "'nvidia.com/gpu'"


class RoleSpec(SpecModel):
    """One of prefill, decode and unified: all three have this shape."""

    model_config = with_rules(
        rules(
            (f"{_PP_TP_DP} % {_PER_POD} == 0", "ranksPerPod must divide pp·tp·dp"),
            (
                "!has(self.resources) || !has(self.resources.limits) || "
                f"!({_GPU} in self.resources.limits) || "
                f"string(self.resources.limits[{_GPU}]) == string({_PER_POD})",
                "a pod has one GPU per rank: limits of nvidia.com/gpu must equal ranksPerPod",
            ),
        )
    )
    replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Groups. Left out: ruled by the PDServingRole's scale (1 until it exists)."""
    parallelism: Parallelism | None = None
    ranks_per_pod: Annotated[int, Field(ge=1, le=64)] | None = None
    resources: Resources | None = None
    engine: EngineSpec | None = None
    pod_template: FreeObject | None = None
    """Merged into the rendered pod (metadata.labels, metadata.annotations, spec)."""

    @property
    def ranks(self) -> int:
        """Ranks of a group."""
        shape = self.parallelism or Parallelism()
        return (shape.pp or 1) * (shape.tp or 1) * (shape.dp or 1)

    @property
    def pods_per_group(self) -> int:
        """Pods of a group."""
        return self.ranks // (self.ranks_per_pod or 1)

    @property
    def groups(self) -> int:
        """Groups wanted."""
        return 1 if self.replicas is None else self.replicas


class ServiceSpec(SpecModel):
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    annotations: (
        Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=64)] | None
    ) = None


class AuthSpec(SpecModel):
    secret_name: Name
    """A Secret whose values are the accepted API keys."""


class RouterSpec(SpecModel):
    replicas: Annotated[int, Field(ge=0, le=100)] | None = None
    """Left out: 1 when the Deployment is made, and then whoever scales it (an HPA) decides."""
    policy: Literal["roundRobin", "leastTokens", "powerOfTwo", "prefixAware", "session"] | None = (
        None
    )
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    resources: Resources | None = None
    service: ServiceSpec | None = None
    auth: AuthSpec | None = None
    pod_template: FreeObject | None = None


class SchedulingSpec(SpecModel):
    scheduler_name: Name | None = None
    priority_class_name: Name | None = None
    gang: Literal["none", "volcano", "coscheduling", "kai"] | None = None
    """Groups of several pods get a PodGroup of that scheduler: all of them start, or none."""
    group_topology_key: Annotated[str, Field(min_length=1, max_length=317)] | None = None
    """All pods of a group run within one value of this node label."""
    schedule_timeout_seconds: Annotated[int, Field(ge=1, le=86400)] | None = None
    """A group that is scheduled in part for so long is deleted whole. Default: 300."""


class RolloutSpec(SpecModel):
    model_config = with_rules(
        rules(
            (
                "!has(self.maxSurge) || !(self.maxSurge == 0 || self.maxSurge == '0%') || "
                "(has(self.maxUnavailable) && "
                "self.maxUnavailable != 0 && self.maxUnavailable != '0%')",
                "maxSurge and maxUnavailable cannot both be zero: nothing could ever be replaced",
            ),
            (
                "!has(self.progressDeadlineSeconds) || self.progressDeadlineSeconds == 0 || "
                "self.progressDeadlineSeconds > "
                "(has(self.minReadySeconds) ? self.minReadySeconds : 0)",
                "progressDeadlineSeconds must be more than minReadySeconds",
            ),
        )
    )
    max_surge: IntOrPercent | None = None
    """Groups of each role beyond its replicas; a percentage rounds up. Default: 1."""
    max_unavailable: IntOrPercent | None = None
    """Groups of each role that may be missing; a percentage rounds down. Default: 0."""
    partition: IntOrPercent | None = None
    """The last steps of a rollout, held back; a percentage of the steps rounds up. Default: 0."""
    paused: bool | None = None
    """Stay at the step that is reached. Scaling and replacing dead groups go on."""
    drain_seconds: Annotated[int, Field(ge=0, le=86400)] | None = None
    """Default: 120."""
    min_ready_seconds: Seconds | None = None
    """A new group counts when it has been ready for so long. Default: 0."""
    progress_deadline_seconds: Seconds | None = None
    """A rollout that gets no nearer to its end for so long is reported. Default: 1800; 0: never."""
    auto_rollback: bool | None = None
    """Go back to the last good revision when the new one shows to be bad. Default: true."""
    revision_history_limit: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Default: 10."""


class PullSecret(SpecModel):
    name: Name


_KV = (
    "(has(self.{0}.engine) && has(self.{0}.engine.{1}) ? self.{0}.engine.{1} : "
    "has(self.engine) && has(self.engine.{1}) ? self.engine.{1} : {2})"
)


def _same(key: str, missing: str, why: str) -> tuple[str, str]:
    prefill, decode = _KV.format("prefill", key, missing), _KV.format("decode", key, missing)
    return f"!has(self.prefill) || !has(self.decode) || {prefill} == {decode}", why


class PDServingSpec(SpecModel):
    model_config = with_rules(
        rules(
            (
                "has(self.unified) ? !has(self.prefill) && !has(self.decode) : "
                "has(self.prefill) && has(self.decode)",
                "give either unified alone, or prefill and decode together",
            ),
            _same(
                "kvDtype",
                "(has(self.model.dtype) ? self.model.dtype : 'bfloat16')",
                "prefill and decode must have one kvDtype: "
                "pages of different types cannot be handed over",
            ),
            _same(
                "pageSize",
                "16",
                "prefill and decode must have one pageSize: "
                "pages of different sizes cannot be handed over",
            ),
        )
    )
    model: ModelSpec
    image: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    """The engine's image. Default: the operator's."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    image_pull_secrets: Annotated[list[PullSecret], Field(max_length=16)] | None = None
    service_account_name: Name | None = None
    """Of the engine pods. Its token is not mounted."""
    engine: EngineSpec | None = None
    prefill: RoleSpec | None = None
    decode: RoleSpec | None = None
    unified: RoleSpec | None = None
    router: RouterSpec | None = None
    compile_cache: CompileCacheSpec | None = None
    scheduling: SchedulingSpec | None = None
    rollout: RolloutSpec | None = None
    restarted_at: Annotated[str, Field(max_length=64)] | None = None
    """Any new value is a new revision: `kubectl pds restart` writes the time."""

    @property
    def roles(self) -> dict[str, RoleSpec]:
        """The roles that this object asks for, in the order of `names.ROLES`."""
        given = {"prefill": self.prefill, "decode": self.decode, "unified": self.unified}
        return {role: spec for role, spec in given.items() if spec is not None}


def parse(raw: dict[str, Any]) -> PDServingSpec:
    """`raw` (an object's `spec`) as a model.

    Raises:
        SpecError: a key is unknown, or a value out of range. The API server's schema catches all
            of it; this is for objects older than the schema.
    """
    try:
        spec = PDServingSpec.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(["spec", *(str(part) for part in first["loc"])])
        message = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise SpecError(f"{key}: {message}") from error
    if not spec.roles:
        raise SpecError("spec: give either unified alone, or prefill and decode together")
    return spec
