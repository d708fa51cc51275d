"""kopf's part: it follows PDServings, and starts and stops everything else.

on.event handlers only: kopf then writes neither an annotation nor a finalizer.
"""

import asyncio
import contextlib
import logging
from typing import Any

import kopf
from aiohttp import web

from pds_operator import names
from pds_operator.run import parents
from pds_operator.run.api import SILENCE_SECONDS, WATCH_SECONDS, Api, login
from pds_operator.run.cluster import follow_all
from pds_operator.run.lease import Lease
from pds_operator.run.probe import Prober
from pds_operator.run.reconcile import Reconciler
from pds_operator.settings import Settings

log = logging.getLogger("pds_operator")


class Runtime:
    """What lives as long as the process."""

    def __init__(self, settings: Settings, api: Api) -> None:
        self.settings = settings
        self.api = api
        self.prober = Prober()
        self.lease = Lease(self.api, settings)
        self.reconciler = Reconciler(
            self.api,
            self.prober,
            settings,
            leads=lambda: self.lease.held,
            clock=self.api.clock.now,
        )
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open connections, then lease, lists and watches; reconciling begins when they are in."""
        await self._stack.enter_async_context(self.api)
        await self._stack.enter_async_context(self.prober)
        if self.settings.liveness_port:
            await self._serve(self.settings.liveness_port)
        self._tasks = [
            asyncio.create_task(self.lease.run(self.reconciler.mark_all), name="lease"),
            asyncio.create_task(
                follow_all(
                    self.api,
                    self.reconciler.store,
                    self.settings.namespaces,
                    self.reconciler.start,
                ),
                name="follow",
            ),
            asyncio.create_task(
                parents.look_for_ever(
                    self.api,
                    self.reconciler.store,
                    self.settings.namespaces,
                    2 * self.settings.resync_seconds,
                ),
                name="parents",
            ),
        ]

    async def stop(self) -> None:
        """End everything; the lease is given back last."""
        await self.reconciler.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.lease.release()
        await self._stack.aclose()

    async def _serve(self, port: int) -> None:
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/metrics", self._metrics)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "0.0.0.0", port).start()

    async def _healthz(self, _: web.Request) -> web.Response:
        """Fails when a task has ended, or when a change waits too long for its reconcile."""
        ended = [task.get_name() for task in self._tasks if task.done()]
        waited = self.reconciler.oldest_wait()
        late = self.lease.held and waited > self.settings.stale_seconds
        if ended and (ended != ["lease"] or self.settings.lease.enabled):
            return web.json_response({"ended": ended}, status=503)
        return web.json_response({"waited_seconds": waited}, status=503 if late else 200)

    async def _metrics(self, _: web.Request) -> web.Response:
        lines = [
            "# TYPE pds_operator_rounds_total counter",
            f"pds_operator_rounds_total {self.reconciler.rounds}",
            "# TYPE pds_operator_leads gauge",
            f"pds_operator_leads {int(self.lease.held)}",
            "# TYPE pds_operator_oldest_wait_seconds gauge",
            f"pds_operator_oldest_wait_seconds {self.reconciler.oldest_wait():.3f}",
            "# TYPE pds_operator_writes_total counter",
        ]
        for what, count in sorted(self.api.writes.items()):
            verb, kind = what.split(" ")
            lines.append(f'pds_operator_writes_total{{verb="{verb}",kind="{kind}"}} {count}')
        return web.Response(text="\n".join(lines) + "\n")


def registry(runtime: Runtime) -> kopf.OperatorRegistry:
    """The handlers, bound to `runtime`."""
    handlers = kopf.OperatorRegistry()

    kopf.on.login(registry=handlers)(kopf.login_via_client)

    @kopf.on.startup(registry=handlers)
    async def _startup(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)
        await runtime.start()

    @kopf.on.cleanup(registry=handlers)
    async def _cleanup(**_: Any) -> None:
        await runtime.stop()

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=handlers)
    async def _event(event: Any, body: Any, **_: Any) -> None:
        obj = dict(event["object"])
        store = runtime.reconciler.store
        if event["type"] == "DELETED":
            meta = obj["metadata"]
            store.drop_parent((meta["namespace"], meta["name"]), meta["uid"])
        else:
            store.put_parent(obj)

    return handlers


def configure(settings: kopf.OperatorSettings) -> None:
    """Let kopf watch, and write nothing."""
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = SILENCE_SECONDS
    settings.watching.inactivity_timeout = SILENCE_SECONDS
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30


async def run(settings: Settings) -> None:
    """Serve until told to stop. Raises SettingsError when there is no cluster to serve."""
    runtime = Runtime(settings, Api(await login()))
    await kopf.operator(
        registry=registry(runtime),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
    )
