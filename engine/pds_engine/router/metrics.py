"""The router's metrics. Those of backends are read from the fleet when they are collected."""

from collections.abc import Callable, Iterator
from typing import Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pds_engine.router.backends import Fleet

RequestPhase = Literal["opening", "streaming", "resuming"]
"""A request before the first byte of its answer, after it, or between two pairs."""
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class RouterMetrics:
    """What is counted per request; `text` adds what the fleet says of itself."""

    def __init__(self, fleet: Fleet, in_flight: Callable[[], int] = lambda: 0) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_FleetCollector(fleet))
        ProcessCollector(registry=self._registry)
        self._requests = Counter(
            "pds_router_requests",
            "Requests by route and by the status that the client got (499: it left first)",
            ["route", "status"],
            registry=self._registry,
        )
        self._attempts = Counter(
            "pds_router_failed_attempts",
            "Attempts at a pair that failed, by status and whether another was made",
            ["status", "again"],
            registry=self._registry,
        )
        self._deaths = Counter(
            "pds_router_group_deaths",
            "Requests during which a group died or fell silent, once for each, by phase: "
            "opening, streaming or resuming",
            ["phase"],
            registry=self._registry,
        )
        self._first = Histogram(
            "pds_router_first_byte_seconds",
            "From the whole request to the first byte of a stream",
            ["route"],
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._duration = Histogram(
            "pds_router_request_seconds",
            "From the whole request to the end of its answer",
            ["route"],
            buckets=BUCKETS,
            registry=self._registry,
        )

        self._migrations = Counter(
            "pds_router_migrations",
            "Streams that went on elsewhere, by why: lost, drained, preempted or failed",
            ["reason"],
            registry=self._registry,
        )
        self._migration = Histogram(
            "pds_router_migration_seconds",
            "From the break of a stream to the first token of what goes on with it",
            buckets=BUCKETS,
            registry=self._registry,
        )

    def migrated(self, reason: str, seconds: float) -> None:
        self._migrations.labels(reason).inc()
        self._migration.observe(seconds)

    def died(self, phase: RequestPhase) -> None:
        self._deaths.labels(phase).inc()

    def ended(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._duration.labels(route).observe(seconds)

    def first_byte(self, route: str, seconds: float) -> None:
        self._first.labels(route).observe(seconds)

    def failed(self, status: int, again: bool) -> None:
        self._attempts.labels(str(status), str(again).lower()).inc()

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self._registry)


class _FleetCollector(Collector):
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        labels = ["pod", "role"]
        routable = GaugeMetricFamily(
            "pds_router_backend_routable", "1 when requests may be sent there", labels=labels
        )
        in_flight = GaugeMetricFamily(
            "pds_router_backend_in_flight", "Requests of this router open there", labels=labels
        )
        outstanding = GaugeMetricFamily(
            "pds_router_backend_outstanding_tokens", "Tokens estimated of those", labels=labels
        )
        requests = CounterMetricFamily(
            "pds_router_backend_requests", "Requests sent there", labels=labels
        )
        failures = CounterMetricFamily(
            "pds_router_backend_failures", "Requests that failed by its fault", labels=labels
        )
        for backend in self._fleet:
            series = [backend.found.pod, backend.state.role if backend.state else ""]
            routable.add_metric(series, 0 if self._fleet.reason(backend) else 1)
            in_flight.add_metric(series, backend.in_flight)
            outstanding.add_metric(series, backend.outstanding)
            requests.add_metric(series, backend.requests)
            failures.add_metric(series, backend.failures)
        yield from (routable, in_flight, outstanding, requests, failures)
