"""The router as a process: it has two ports, and its end cuts no stream."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Coroutine, Iterator
from typing import Any

import uvicorn

from pds_engine.listening import bind
from pds_engine.ports import Use
from pds_engine.router.app import Router
from pds_engine.router.config import RouterConfig
from pds_engine.router.keyring import follow, opened

logger = logging.getLogger(__name__)
LOOK_SECONDS = 0.1
"""Between two checks whether a router that leaves is at rest."""
HTTP, METRICS = Use("HTTP", "port"), Use("metrics", "metrics_port")
CANCEL_SECONDS = 1
"""For what is cut at the very end."""


class Server(uvicorn.Server):
    """uvicorn without its own signal handlers: `serve` below decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server(app: Any, host: str, port: int, drain_seconds: float) -> Server:
    """An ASGI application on a port; its answers may last `drain_seconds` at the end."""
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            interface="asgi3",
            loop="none",
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
        )
    )


async def serve(config: RouterConfig) -> None:
    """Serve until SIGTERM or SIGINT, then drain (router.md): not ready at once, new connections for
    `linger_seconds` more, then the end of open streams. A second signal ends it at once.

    Raises:
        ConfigError: keys or backends cannot be found, or an address is not this machine's.
        PortTaken: another process has a port.
    """
    router = Router(config, opened(config.keys_dir) if config.keys_dir else None)
    servers = [server(router, config.host, config.port, CANCEL_SECONDS)]
    ours = [bind(config.host, config.port, HTTP)]
    if config.metrics_port is not None:
        servers.append(server(router.observed, config.host, config.metrics_port, CANCEL_SECONDS))
        ours.append(bind(config.host, config.metrics_port, METRICS))
    await router.discovery.start()
    loop = asyncio.get_running_loop()
    leaving, now = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if router.leaving:
            now.set()
        router.leaving = True
        leaving.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    main, *others = [
        loop.create_task(each.serve(at)) for each, at in zip(servers, ours, strict=True)
    ]
    beside = [loop.create_task(_leave(router, servers[0], leaving, now))]
    if config.keys_dir is not None:
        fleet = router.fleet
        follows = follow(fleet.keys, config.keys_dir, fleet.key_ids, fleet.notify)
        beside.append(loop.create_task(follows))
    try:
        await main
    finally:
        for task in beside:
            task.cancel()
        for each in servers:
            each.should_exit = True
        await asyncio.gather(*beside, *others, return_exceptions=True)
        await router.close()


async def _leave(router: Router, main: Server, leaving: asyncio.Event, now: asyncio.Event) -> None:
    await leaving.wait()
    linger, drain = router.config.linger_seconds, router.config.drain_seconds
    logger.info("leaving: new requests are taken for a while", extra={"linger_seconds": linger})
    await _within(linger, now.wait())
    if not now.is_set():
        for listening in main.servers:
            listening.close()
        # A request that follows the last old stream may last as long as that stream.
        await _within(2 * drain, _at_rest(router, main, now))
    main.should_exit = True
    await now.wait()
    main.force_exit = True


async def _at_rest(router: Router, main: Server, now: asyncio.Event) -> None:
    """Until no connection is left, or no call has come for `linger_seconds`.

    The client of a stream that began before the signal does not know that its connection closes,
    and may send its next request on it: closing right behind the stream would cut that one. It is
    answered, with `Connection: close` (as nginx's keepalive_min_timeout has it).
    """
    linger = router.config.linger_seconds
    while main.server_state.connections and router.relay.idle_seconds < linger:
        await _within(LOOK_SECONDS, now.wait())
        if now.is_set():
            return


async def _within(seconds: float, work: Coroutine[Any, Any, object]) -> None:
    """Wait for `work`, `seconds` at the most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await work
