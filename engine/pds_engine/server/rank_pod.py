"""The server of a pod that is not its group's leader: health, metrics, and the group's drain.

It follows the leader's scheduler as the API server does, and accepts no requests. Such a pod is
ready when its group is. SIGTERM drains the whole group: its ranks go on computing until nothing is
left, and until the leader has ended, which may still send the last tokens to its clients.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import zmq
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pds_engine import wire
from pds_engine.config import EngineConfig
from pds_engine.errors import GroupError
from pds_engine.keys import Keys
from pds_engine.server import state
from pds_engine.server.errors import probe_answer
from pds_engine.server.listen import listen
from pds_engine.server.scheduler_client import SchedulerClient
from pds_engine.server.warmed import show_warmup

RELEASE_SECONDS = 10.0
"""How long a drained group's leader may take to end before this pod ends without it."""
_COUNTS = {
    "steps": "Steps that it has begun.",
    "hidden_sent": "Hidden states that it has sent.",
    "hidden_received": "Hidden states that it has received.",
    "outputs_sent": "Outputs that it has sent.",
    "outputs_received": "Outputs that it has received.",
    "outputs_unneeded": "Outputs that it has received, and of which no step read a token.",
}
"""Fields of messages.Traffic."""


class RankMetrics(Collector):
    """What this pod's ranks do. Only the leader shows figures of the whole group."""

    def __init__(self, scheduler: SchedulerClient, ranks: range) -> None:
        self._scheduler = scheduler
        self._ranks = ranks
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """As of what the scheduler reported last."""
        group = self._scheduler.state
        ready = GaugeMetricFamily("pds_rank_ready", "1 once the rank has joined.", labels=["rank"])
        for rank in self._ranks:
            ready.add_metric([str(rank)], float(group is not None and rank not in group.missing))
        yield ready
        own = [each for each in group.traffic if each.rank in self._ranks] if group else []
        for name, text in _COUNTS.items():
            counted = CounterMetricFamily(f"pds_rank_{name}", text, labels=["rank"])
            for each in own:
                counted.add_metric([str(each.rank)], getattr(each, name))
            yield counted


def create_app(
    scheduler: SchedulerClient, config: EngineConfig, registry: CollectorRegistry
) -> FastAPI:
    """The application; it starts and stops `scheduler` with itself."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # In a task of its own: the leader may come late, and SIGTERM need not wait for it.
        joining = asyncio.create_task(_join(scheduler))
        try:
            yield
            if joining.done() and scheduler.error is None:
                # The pod's own grace is the deadline, unless the group has an earlier one.
                scheduler.drain(math.inf)
                if await scheduler.drained(None):
                    await scheduler.ended(RELEASE_SECONDS)
        finally:
            joining.cancel()
            await scheduler.stop()

    async def healthz(request: Request) -> Response:
        error = scheduler.error.message if scheduler.error else None
        age = scheduler.clock() - scheduler.state_at
        return probe_answer(
            state.unhealthy(scheduler.state, age, config.scheduler.step_timeout, error)
        )

    async def readyz(request: Request) -> Response:
        if scheduler.error is not None:
            return probe_answer(scheduler.error.message)
        return probe_answer(state.unready(scheduler.state, config))

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    for path, route in (("/healthz", healthz), ("/readyz", readyz), ("/metrics", metrics)):
        app.add_route(path, route, methods=["GET"])
    return app


async def _join(scheduler: SchedulerClient) -> None:
    try:
        await scheduler.start()
    except GroupError as error:
        scheduler.lose(error)


def run(config: EngineConfig, keys: Keys, schedulers: Sequence[str]) -> None:
    """Serve until SIGTERM, which drains the group, or until the group ends.

    Args:
        schedulers: their ZMQ addresses in the leader's pod, by dp rank.

    Raises:
        ConfigError: a port cannot be used.
        GroupError: the scheduler was lost before anybody asked for the end.
    """
    context = zmq.Context()
    scheduler = SchedulerClient(
        [partial(wire.AsyncLink, context, address, keys) for address in schedulers],
        group=config.pod.group,
        incarnation="",
        capacity=0,
        join_timeout=config.join_timeout,
    )
    first = config.pod.index * config.parallelism.ranks_per_pod
    ranks = range(first, first + config.parallelism.ranks_per_pod)
    registry = RankMetrics(scheduler, ranks).registry
    show_warmup(config, registry)
    try:
        listen(create_app(scheduler, config, registry), config.http, scheduler, registry)
    finally:
        context.destroy(linger=0)
    if scheduler.error is not None and not scheduler.draining:
        raise scheduler.error
