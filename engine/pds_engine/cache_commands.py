"""`pds-engine cache …`: looks after a compile cache."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from pds_engine.config import EngineConfig
from pds_engine.errors import ConfigError, PdsError

app = typer.Typer(help="Look after a compile cache.", no_args_is_help=True)

CachePath = Annotated[Path, typer.Argument(help="Where the cache is mounted.")]
KeysPath = Annotated[
    Path | None,
    typer.Option("--keys", help="Folder of the key that seals artefacts: cache.key, or hmac.key."),
]


def _known(target: str | None) -> str | None:
    """cpu, with or without the digest of what it can do, or a GPU."""
    from pds_kernels import targets

    if target is not None and target.partition("-")[0] != "cpu":
        try:
            targets.gpu(target)
        except ValueError as error:
            raise typer.BadParameter(f"{error}, or cpu") from None
    return target


def _days(number: float) -> float:
    if not number >= 0:
        raise typer.BadParameter(f"{number} is no number of days: give 0 or more")
    return number


Target = Annotated[
    str | None,
    typer.Option(
        "--target", help="Only artefacts for this GPU (sm_90), or for cpu.", callback=_known
    ),
]


@app.command("ls")
def ls(path: CachePath, keys: KeysPath = None, target: Target = None) -> None:
    """List the artefacts."""
    table = Table("KIND", "TARGET", "KEY", "BYTES", "SECONDS", "INTACT")
    for entry in _entries(path, keys, target):
        row = (entry.kind, entry.target, entry.key[:16], str(entry.bytes), f"{entry.seconds:.1f}")
        table.add_row(*row, "yes" if entry.intact else "no")
    Console().print(table)


@app.command("verify")
def verify(path: CachePath, keys: KeysPath = None, target: Target = None) -> None:
    """Check every artefact against its seal; status 1 when one is damaged, or when there is none
    for --target."""
    known = list(_entries(path, keys, target))
    damaged = [entry for entry in known if not entry.intact]
    for entry in damaged:
        typer.echo(f"damaged: {entry.kind}/{entry.key}")
    wanted = f" for {target}" if target else ""
    typer.echo(f"{len(known)} artefacts{wanted}, {len(damaged)} damaged")
    sys.exit(1 if damaged or (target and not known) else 0)


@app.command("prune")
def prune(
    path: CachePath,
    keys: KeysPath = None,
    unused_days: Annotated[
        float, typer.Option(help="Remove what was unused for so long.", callback=_days)
    ] = 30,
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


@app.command("export")
def export(
    path: CachePath,
    layout: Annotated[Path, typer.Argument(help="An empty folder, or none yet.")],
    keys: KeysPath = None,
    target: Target = None,
) -> None:
    """Write artefacts as an OCI image layout, which registries hold; print its digest."""
    from pds_kernels.cache import BadLayout, give

    with _volume_errors():
        try:
            digest, count = give(_cache(path, keys), layout, target or "")
        except BadLayout as error:
            raise PdsError(str(error)) from error
        except OSError as error:
            raise PdsError(f"{layout}: {error}") from error
    typer.echo(f"{digest} {count} artefacts")
    sys.exit(0 if count else 1)


@app.command("import")
def import_(
    path: CachePath,
    layout: Annotated[Path, typer.Argument(help="The folder that `export` has written.")],
    digest: Annotated[
        str, typer.Option(help="sha256:… that `export` has printed: artefacts are code.")
    ],
    keys: KeysPath = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="Take those for this GPU (sm_90). Default: this CPU's.",
            callback=_known,
        ),
    ] = None,
) -> None:
    """Take artefacts from an OCI image layout and seal them by our key."""
    from pds_kernels.cache import BadLayout, take
    from pds_kernels.cpu import here
    from pds_kernels.cpu.library import target as made_for

    with _volume_errors():
        try:
            taken = take(_cache(path, keys), layout, digest, target or made_for(here()))
        except BadLayout as error:
            raise PdsError(f"{layout}: {error}") from error
    typer.echo(f"{taken.new} taken, {taken.present} there already, {taken.unfit} do not fit")
    if taken.unfit and not (taken.new or taken.present):
        raise PdsError(
            f"nothing in {layout} is for {target or 'the CPU of this machine'}",
            hint="give its own --target, as sm_90",
        )


def _entries(path: Path, keys: Path | None, target: str | None) -> Iterator[Any]:
    """Those for `target`. What is damaged does not say what it is for, and is among all of them."""
    from pds_kernels.cache import entries
    from pds_kernels.cache.travel import fits

    with _volume_errors():
        for entry in entries(_cache(path, keys)):
            if not entry.intact or fits(entry.target, target or ""):
                yield entry


@contextmanager
def _volume_errors() -> Iterator[None]:
    """Errors of the volume, without a traceback."""
    from pds_kernels.cache import Trouble

    try:
        yield
    except Trouble as trouble:
        raise PdsError(str(trouble)) from trouble


def _cache(path: Path, keys: Path | None) -> Any:
    from pds_engine.cache import open_cache

    if not path.is_dir():
        raise ConfigError(f"{path} is not a folder", hint="give the mount point of the cache")
    own = keys is not None and (keys / "cache.key").exists()
    cache = {"path": path, "key_dir": keys if own else None}
    http = {"keys_dir": None if own else keys}
    return open_cache(EngineConfig.model_validate({"cache": cache, "http": http}))
