"""uvicorn around an application, the metrics' port beside it, and how both end."""

import logging
import signal

import uvicorn
from prometheus_client import CollectorRegistry, start_http_server
from starlette.types import ASGIApp

from pds_engine.config import HttpConfig
from pds_engine.errors import GroupError
from pds_engine.listening import bind, refusal
from pds_engine.ports import HTTP, METRICS
from pds_engine.server.scheduler_client import SchedulerClient

logger = logging.getLogger("pds.server")


def listen(
    app: ASGIApp, http: HttpConfig, scheduler: SchedulerClient, registry: CollectorRegistry
) -> None:
    """Serve until SIGTERM, which lets the application drain, or until `scheduler` is lost.

    Raises:
        PortTaken: another process has a port.
        ConfigError: a port cannot be used.
        GroupError: the application did not start.
    """
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=http.host,
            port=http.port,
            loop="uvloop",
            http="httptools",
            lifespan="on",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
        )
    )

    def end() -> None:
        server.should_exit = True

    scheduler.on_loss = end
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn drains on these and then raises them anew, which would end us with a bad status.
        signal.signal(number, lambda *_: None)
    ours = bind(http.host, http.port, HTTP)
    try:
        metrics, thread = start_http_server(http.metrics_port, http.host, registry)
    except OSError as error:
        for each in ours:
            each.close()
        raise refusal(error, http.host, http.metrics_port, METRICS) from error
    for each in ours:
        logger.info("HTTP on %s, port %d", *each.getsockname()[:2])
    try:
        server.run(ours)
    except OSError as error:
        if server.started:
            raise
        # The port was free when we bound it, and another process began to listen before us.
        raise refusal(error, http.host, http.port, HTTP) from error
    finally:
        metrics.shutdown()
        metrics.server_close()
        thread.join()
    if scheduler.error is None and not server.started:
        raise GroupError("the API server did not start; the log says why")
