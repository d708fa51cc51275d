"""The engine's configuration file for one role, as its `EngineConfig` reads it. Pure."""

from typing import Any

from pds_operator.schema import EngineSpec, PDServingSpec, RoleSpec
from pds_operator.schema.fields import SpecModel

Object = dict[str, Any]

CACHE_MOUNT = "/var/cache/pds"
"""Fixed: Triton's group files hold absolute paths."""
KEYS_MOUNT = "/etc/pds/keys"
MODEL_MOUNT = "/models"

PLACES: dict[str, str] = {
    "max_model_len": "max_model_len",
    "page_size": "kv.page_size",
    "kv_dtype": "kv.dtype",
    "kv_pages": "kv.pages",
    "kv_memory_bytes": "kv.memory_bytes",
    "kv_memory_fraction": "kv.memory_fraction",
    "kv_backends": "kv.backends",
    "chunk_size": "scheduler.chunk_size",
    "chunked_prefill": "scheduler.chunked_prefill",
    "dynamic_chunks": "scheduler.dynamic_chunks",
    "preemption": "scheduler.preemption",
    "max_running": "scheduler.max_running",
    "max_waiting": "scheduler.max_waiting",
    "prefix_cache": "scheduler.prefix_cache",
    "async_scheduling": "scheduler.async_scheduling",
    "step_timeout_seconds": "scheduler.step_timeout",
    "join_timeout_seconds": "join_timeout",
    "request_timeout_seconds": "http.request_timeout",
    "pipeline": "pipeline",
    "delayer": "delayer",
    "dp": "dp",
    "device": "device",
    "threads": "threads",
    "compile": "compile",
    "cuda_graphs": "cuda_graphs",
    "log_level": "log_level",
}
"""Where each field of `engine` stands in the engine's own configuration."""


def engine_config(spec: PDServingSpec, role: str) -> Object:
    """The file of `role`. What the spec leaves out is left to the engine's defaults."""
    shape = spec.roles[role]
    warm = warms_up(spec)
    tree: Object = {
        "model": _given(
            {"name": spec.model.name, "path": model_path(spec), "dtype": spec.model.dtype}
        ),
        "role": role,
        "parallelism": _parallelism(shape),
        "cache": _cache(spec),
        "http": {"host": "0.0.0.0", "keys_dir": KEYS_MOUNT},
        "compile": warm,
    }
    for common in (spec.engine, shape.engine):
        if common is not None:
            _overlay(tree, common)
    return tree


def model_path(spec: PDServingSpec) -> str:
    """The model's folder inside the container."""
    source = spec.model.source
    if source.path is not None:
        return source.path
    inner = source.pvc.path if source.pvc else source.image.path if source.image else None
    return f"{MODEL_MOUNT}/{(inner or '').strip('/')}".rstrip("/")


def warms_up(spec: PDServingSpec) -> bool:
    """Whether pods compile ahead: said, or else where there is a compileCache."""
    cache = spec.compile_cache
    if cache is None:
        return False
    return cache.warmup is None or cache.warmup.enabled is not False


def _parallelism(shape: RoleSpec) -> Object:
    given = shape.parallelism
    axes = given.model_dump() if given else {}
    return _given({**axes, "ranks_per_pod": shape.ranks_per_pod})


def _cache(spec: PDServingSpec) -> Object:
    cache = spec.compile_cache
    if cache is None:
        return {}
    warmup = cache.warmup
    return _given(
        {
            "path": CACHE_MOUNT,
            "warmup": warms_up(spec),
            "workers": warmup.workers if warmup else None,
            "timeout_seconds": warmup.timeout_seconds if warmup else None,
        }
    )


def _overlay(tree: Object, engine: EngineSpec) -> None:
    for field, place in PLACES.items():
        value = getattr(engine, field)
        if value is None:
            continue
        *parents, last = place.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if isinstance(value, SpecModel):
            node[last] = {**node.get(last, {}), **value.model_dump(exclude_none=True)}
        else:
            node[last] = value


def _given(values: Object) -> Object:
    return {key: value for key, value in values.items() if value is not None}
