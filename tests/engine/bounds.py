"""A scheduler's settings by the plain names of what matters to a test."""

from typing import Any

from pds_engine.config import EngineConfig, known_keys
from pds_engine.scheduler.settings import Settings

SECTIONS = ("parallelism", "kv", "scheduler", "pipeline", "delayer")
PLACES = {
    key.rpartition(".")[2]: key.rpartition(".")[0]
    for key in sorted(known_keys(EngineConfig), key=lambda key: "." in key)
    if "." not in key or key.startswith(tuple(f"{name}." for name in SECTIONS))
}
"""The section of each name; "" for those outside of any. dp is parallelism.dp."""


def bounded(**bounds: object) -> Settings:
    """bounded(pp=2, chunk_size=32): each in its section, all others by default; unchecked by `of`.
    `window` is the model's.

    Raises:
        KeyError: no section that schedulers read has such a name.
    """
    tree: dict[str, Any] = {"window": bounds.pop("window", None)}
    for name, value in bounds.items():
        section = PLACES[name]
        (tree.setdefault(section, {}) if section else tree)[name] = value
    return Settings.model_validate(tree)
