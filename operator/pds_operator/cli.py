"""`pds-operator run` and `pds-operator crd`."""

import asyncio
import logging
from pathlib import Path
from typing import Annotated

import typer
import uvloop

from pds_operator import settings
from pds_operator.errors import SettingsError
from pds_operator.run import handlers
from pds_operator.schema import crd as definitions

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def _operator() -> None:
    """The Kubernetes operator of PDServing."""


@app.command()
def run(
    config: Annotated[Path | None, typer.Option(help="Settings, YAML or JSON.")] = None,
    namespace: Annotated[
        list[str] | None, typer.Option(help="Serve this namespace only; may be repeated.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Serve PDServings until stopped."""
    try:
        given = settings.load(config, {"namespaces": namespace or None, "log_level": log_level})
        logging.basicConfig(
            level=given.log_level.upper(),
            format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        )
        # kopf logs every event of every handler at INFO.
        logging.getLogger("kopf").setLevel(logging.WARNING)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(handlers.run(given))
    except SettingsError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(78) from error


@app.command()
def crd(
    chart: Annotated[bool, typer.Option("--chart", help="As the chart's template.")] = False,
) -> None:
    """Print the CustomResourceDefinition (`make gen` writes it to crds/ and to the chart)."""
    typer.echo(definitions.chart_template() if chart else definitions.text(), nl=False)


def main() -> None:
    """The console script."""
    app()
