"""`pds-router serve`."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from pds_engine import log
from pds_engine.errors import EXIT_CONFIG, ConfigError, PdsError
from pds_engine.router.config import load

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def about() -> None:
    """The router of a PDServing: one OpenAI endpoint over its prefill and decode groups."""


@app.command()
def serve(
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file")] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="http://host:port of an engine; repeat it")
    ] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on [127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="port [8000]")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="port of /metrics [9090]")] = None,
    model: Annotated[str | None, typer.Option(help="what /v1/models lists [default]")] = None,
    policy: Annotated[str | None, typer.Option(help="how groups are chosen [leastTokens]")] = None,
    keys_dir: Annotated[Path | None, typer.Option(help="folder of the control keys")] = None,
    pdserving: Annotated[str | None, typer.Option(help="whose pods are followed [local]")] = None,
    namespace: Annotated[str | None, typer.Option(help="in which namespace [default]")] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="outside a cluster")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning, error")] = None,
) -> None:
    """Serve until SIGTERM. Flags win over PDS_* variables, and these over the file."""
    flags = {
        "backends": backend or None,
        "host": host,
        "port": port,
        "metrics_port": metrics_port,
        "model": model,
        "policy": policy,
        "keys_dir": keys_dir,
        "pdserving": pdserving,
        "namespace": namespace,
        "kubernetes.kubeconfig": kubeconfig,
        "log_level": log_level,
    }
    from pds_engine.router.serve import serve as run  # after --help: it loads the web framework

    settings = load(config, flags=flags)
    log.configure(settings.log_level)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(settings))


def main() -> None:
    """Entry point; a configuration error ends with status 78, any other of ours with 1."""
    try:
        app()
    except PdsError as error:
        print(f"pds-router: {error}", file=sys.stderr)
        sys.exit(EXIT_CONFIG if isinstance(error, ConfigError) else 1)
