"""The API server's Prometheus metrics. Names start with pds_, units end them."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from pds_engine.messages import STATE_METRICS, State

_TTFT = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_GAP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Gaps(Collector):
    """A histogram that one thread writes, for what happens with every token: prometheus_client's
    own takes three locks for it."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._bounds = name, text, tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[Metric]:
        names = (*(str(float(bound)) for bound in self._bounds), "+Inf")
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets, self._sum)


class ServerMetrics:
    """All series of one API server, in a registry of their own."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which nobody asks for
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "pds_requests", "HTTP requests by route and status.", ("route", "status"),
            registry=registry,
        )  # fmt: skip
        self.prompt_tokens = Counter("pds_prompt_tokens", "Prompt tokens.", registry=registry)
        self.cached_tokens = Counter(
            "pds_cached_prompt_tokens", "Prompt tokens found in a prefix cache.", registry=registry
        )
        self.output_tokens = Counter("pds_output_tokens", "Output tokens.", registry=registry)
        self.ttft = Histogram(
            "pds_time_to_first_token_seconds", "From the request's arrival to its first token.",
            buckets=_TTFT, registry=registry,
        )  # fmt: skip
        self.gap = Gaps("pds_inter_token_seconds", "Between two tokens of one choice.", _GAP)
        registry.register(self.gap)
        self.delayer_passes = Gauge(
            "pds_prefill_delayer_passes", "Passes with prompts, by the delayer's reason.",
            ("reason",), registry=registry,
        )  # fmt: skip
        self.compiles_after_ready = Gauge(
            "pds_compiles_after_ready", "What ranks compiled although the group was ready.",
            registry=registry,
        )  # fmt: skip
        self.startup = Gauge(
            "pds_startup_seconds", "Of the rank that took longest to start, by phase.",
            ("phase",), registry=registry,
        )  # fmt: skip
        self._gauges = {
            field: Gauge(metric.name, metric.text, registry=registry)
            for field, metric in STATE_METRICS.items()
        }

    def show(self, state: State) -> None:
        """Set the gauges to what the scheduler reported."""
        for field, gauge in self._gauges.items():
            gauge.set(float(getattr(state, field)))
        if state.kernels is not None:
            self.compiles_after_ready.set(state.kernels.compiles_after_ready)
        for phase, seconds in state.startup:
            self.startup.labels(phase).set(seconds)
        for reason, passes in state.delayer_passes:
            self.delayer_passes.labels(reason).set(passes)

    def text(self) -> bytes:
        """Prometheus' exposition format."""
        return generate_latest(self.registry)
