"""`pds-engine serve | check | warmup | cache`."""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from pds_engine import config as configuration
from pds_engine import launch
from pds_engine.config import EngineConfig
from pds_engine.errors import EXIT_CONFIG, ConfigError, PdsError
from pds_engine.verdict import judge

app = typer.Typer(
    help="The engine of PDServing.", no_args_is_help=True, pretty_exceptions_enable=False
)
cache_app = typer.Typer(help="Look after a compile cache.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML or JSON file.")]
CachePath = Annotated[Path, typer.Argument(help="Where the cache is mounted.")]
SetPairs = Annotated[
    list[str] | None, typer.Option("--set", help="Any other key: kv.page_size=16.")
]
KeysPath = Annotated[
    Path | None,
    typer.Option("--keys", help="Folder of the key that seals artefacts: cache.key, or hmac.key."),
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
        "model.name": name or (model.resolve().name if model and not config else None),
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
def warmup(config: ConfigFile = None) -> None:
    """Compile into the shared cache what this pod's stages will run, before they start."""
    from pds_engine import warmup as warming

    settings = configuration.load(config)
    launch.check(settings)
    sys.exit(warming.run(settings))


@cache_app.command("ls")
def cache_ls(path: CachePath, keys: KeysPath = None) -> None:
    """List the artefacts."""
    from pds_kernels.cache import entries

    table = Table("KIND", "KEY", "BYTES", "SECONDS", "INTACT")
    with _volume_errors():
        for entry in entries(_cache(path, keys)):
            row = (entry.kind, entry.key[:16], str(entry.bytes), f"{entry.seconds:.1f}")
            table.add_row(*row, "yes" if entry.intact else "no")
    Console().print(table)


@cache_app.command("verify")
def cache_verify(path: CachePath, keys: KeysPath = None) -> None:
    """Check every artefact against its seal; status 1 when one is damaged."""
    from pds_kernels.cache import entries

    with _volume_errors():
        known = list(entries(_cache(path, keys)))
    damaged = [entry for entry in known if not entry.intact]
    for entry in damaged:
        typer.echo(f"damaged: {entry.kind}/{entry.key}")
    typer.echo(f"{len(known)} artefacts, {len(damaged)} damaged")
    sys.exit(1 if damaged else 0)


@cache_app.command("prune")
def cache_prune(
    path: CachePath,
    keys: KeysPath = None,
    unused_days: Annotated[float, typer.Option(help="Remove what was unused for so long.")] = 30,
    any_key: Annotated[
        bool, typer.Option(help="Remove those of other keys too, as of a predecessor's.")
    ] = False,
) -> None:
    """Remove leftovers, damaged artefacts and those that nobody has used lately."""
    from pds_kernels.cache import prune

    unused = unused_days * 86400
    with _volume_errors():
        gone = prune(_cache(path, keys), unused_for=unused, now=time.time(), any_key=any_key)
    for entry in gone:
        typer.echo(f"removed {entry.kind}/{entry.key}")


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


@contextmanager
def _volume_errors() -> Iterator[None]:
    """Errors of the volume, without a traceback."""
    from pds_kernels.cache import Trouble

    try:
        yield
    except Trouble as trouble:
        raise PdsError(str(trouble)) from trouble


def _cache(path: Path, keys: Path | None) -> Any:
    from pds_engine.warmup import open_cache

    if not path.is_dir():
        raise ConfigError(f"{path} is not a folder", hint="give the mount point of the cache")
    own = keys is not None and (keys / "cache.key").exists()
    cache = {"path": path, "key_dir": keys if own else None}
    http = {"keys_dir": None if own else keys}
    return open_cache(EngineConfig.model_validate({"cache": cache, "http": http}))
