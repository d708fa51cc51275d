"""What the warm-up of this pod did, as gauges."""

from prometheus_client import CollectorRegistry, Gauge

from pds_engine.config import EngineConfig
from pds_engine.warming.account import account_in, private_folder


def show_warmup(config: EngineConfig, registry: CollectorRegistry) -> None:
    """Add them; none where there was no warm-up for this engine."""
    warmed = config.cache.path is not None and config.cache.warmup
    account = account_in(private_folder(config)) if warmed else None
    if account is None:
        return
    artefacts = Gauge(
        "pds_warmup_artefacts", "What the warm-up of these stages built or found.",
        ("stages", "source"), registry=registry,
    )  # fmt: skip
    for source, count in account.artefacts.items():
        artefacts.labels(account.stages, source).set(count)
    seconds = Gauge(
        "pds_warmup_seconds", "How long the warm-up took.", ("stages",), registry=registry
    )
    seconds.labels(account.stages).set(account.seconds)
