"""`pds-engine serve | check | warmup | cache`."""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from pds_engine import cache_commands, launch
from pds_engine import config as configuration
from pds_engine.config import EngineConfig
from pds_engine.errors import EXIT_CONFIG, ConfigError, PdsError
from pds_engine.verdict import judge

app = typer.Typer(
    help="The engine of PDServing.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(cache_commands.app, name="cache")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML or JSON file.")]
SetPairs = Annotated[
    list[str] | None, typer.Option("--set", help="Any other key: kv.page_size=16.")
]

_WIDE = 1000
"""Columns of a terminal for a table whose rows are lines, however wide: programs read them."""


def main() -> None:
    """Entry point: a configuration error ends with status 78, any other of ours with 1; both
    name their cure, without a traceback."""
    try:
        app()
    except PdsError as error:
        launch.report(error)
        sys.exit(EXIT_CONFIG if isinstance(error, ConfigError) else 1)


@app.command()
def serve(
    config: ConfigFile = None,
    model: Annotated[Path | None, typer.Option(help="Folder of the model.")] = None,
    name: Annotated[str | None, typer.Option(help='What clients send as "model".')] = None,
    role: Annotated[str | None, typer.Option(help="unified, prefill or decode.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float32 or float16.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="HTTP port.")] = None,
    pp: Annotated[int | None, typer.Option(help="Pipeline stages.")] = None,
    tp: Annotated[int | None, typer.Option(help="Ranks of an attention group.")] = None,
    dp: Annotated[int | None, typer.Option(help="Data-parallel attention groups.")] = None,
    ep: Annotated[
        bool | None, typer.Option("--ep/--no-ep", help="Each rank of a stage has some experts.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of a request.")] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads on CPU.")] = None,
    chunk_size: Annotated[int | None, typer.Option(help="Prompt tokens in one step.")] = None,
    set_: SetPairs = None,
) -> None:
    """Serve a model over HTTP: the OpenAI API, on one machine or as part of a PDServing."""
    flags: dict[str, Any] = {
        "model.path": model,
        "model.name": name,
        "role": role,
        "model.dtype": dtype,
        "http.host": host,
        "http.port": port,
        "parallelism.pp": pp,
        "parallelism.tp": tp,
        "parallelism.dp": dp,
        "parallelism.ep": ep,
        "max_model_len": max_model_len,
        "threads": threads,
        "scheduler.chunk_size": chunk_size,
    }
    flags |= _pairs(set_)
    settings = configuration.load(config, flags=flags)
    if (pp, tp, dp) != (None, None, None):
        # Ranks that these flags ask for are for this machine; those of --set may be in other pods.
        flags.setdefault("parallelism.ranks_per_pod", settings.parallelism.ranks)
        settings = configuration.load(config, flags=flags)
    sys.exit(launch.serve(settings))


@app.command()
def check(
    config: ConfigFile = None,
    model: Annotated[Path | None, typer.Option(help="Folder of config.json.")] = None,
    role: Annotated[str | None, typer.Option(help="unified, prefill or decode.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float32 or float16.")] = None,
    pp: Annotated[int | None, typer.Option(help="Pipeline stages.")] = None,
    tp: Annotated[int | None, typer.Option(help="Ranks of an attention group.")] = None,
    dp: Annotated[int | None, typer.Option(help="Data-parallel attention groups.")] = None,
    ep: Annotated[bool | None, typer.Option(help="Whole experts on each rank.")] = None,
    max_model_len: Annotated[int | None, typer.Option(help="Tokens of a request.")] = None,
    kv_memory: Annotated[str | None, typer.Option(help="Of a rank's KV pages: 16GiB.")] = None,
    memory: Annotated[str | None, typer.Option(help="Of a rank's device, in all: 80GiB.")] = None,
    target: Annotated[str | None, typer.Option(help="Count weights as on this GPU: sm_90.")] = None,
    set_: SetPairs = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Say from config.json alone whether a model is served, and what each rank holds of it.

    Status 78: it is not served so.
    """
    flags: dict[str, Any] = {
        "model.path": model,
        "role": role,
        "model.dtype": dtype,
        "parallelism.pp": pp,
        "parallelism.tp": tp,
        "parallelism.dp": dp,
        "parallelism.ep": ep,
        "max_model_len": max_model_len,
        "kv.memory_bytes": None if kv_memory is None else size_in_bytes("--kv-memory", kv_memory),
        "cache.target": target,
    }
    settings = configuration.load(config, flags=flags | _pairs(set_))
    found = judge(settings, None if memory is None else size_in_bytes("--memory", memory))
    if as_json:
        typer.echo(json.dumps(found.as_json(), indent=2))
    else:
        for line in found.lines():
            typer.echo(line)
        if found.ranks:
            table = Table(*map(str.upper, found.COLUMNS), box=None, pad_edge=False)
            for row in found.rows():
                table.add_row(*row)
            Console(width=_WIDE).print(table)
    sys.exit(0 if found.refusal is None else EXIT_CONFIG)


@app.command()
def warmup(
    config: ConfigFile = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be compiled.")] = False,
    target: Annotated[
        str | None, typer.Option(help="Compile for this GPU, as sm_90, which need not be near.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --plan: as JSON.")] = False,
) -> None:
    """Compile into the shared cache what this pod's stages will run, before they start."""
    from pds_engine import warmup as warming

    if as_json and not plan:
        raise ConfigError("--json: it is for --plan", hint="add --plan, or leave --json out")
    if target == "cpu":
        target = ""
    settings = configuration.load(config, flags={"cache.target": target})
    if plan:
        _print_plan(settings, as_json=as_json)
        return
    launch.check(settings)
    sys.exit(warming.run(settings))


def _print_plan(settings: EngineConfig, *, as_json: bool) -> None:
    from pds_engine.artefacts.listing import listing

    found = listing(settings)
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    typer.echo(f"target {found.target}, role {settings.role}")
    for step in found.steps:
        typer.echo(f"  {step.kind} of {step.tokens} tokens")
    for pod in found.pods:
        typer.echo(f"pod {pod.pod}: {len(pod.names)} artefacts")
        for kind, name in zip(pod.kinds, pod.names, strict=True):
            typer.echo(f"  {kind}  {name}")


def _pairs(given: list[str] | None) -> dict[str, Any]:
    """What --set says, by key."""
    found = {}
    for pair in given or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set {pair}: write KEY=VALUE", hint="for example kv.page_size=16")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {pair}: the value is not YAML", hint="quote it") from error
    return found


def size_in_bytes(option: str, text: str) -> int:
    """`text` in bytes; it may end in KiB, MiB, GiB or TiB."""
    found = re.fullmatch(r"(\d{1,20}(?:\.\d+)?)\s*(?:([KMGT])iB)?", text)
    if found is None:
        raise ConfigError(f"{option} {text}: not a number of bytes", hint="write it as 16GiB")
    power = " KMGT".index(found[2] or " ")
    return int(float(found[1]) * 1024**power)
