"""The real kubectl, as a program: it logs in however its user does."""

import json
import shutil
import subprocess
from typing import Annotated, Any, NoReturn

import typer

Object = dict[str, Any]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="As kubectl's.")]
Context = Annotated[str | None, typer.Option("--context", help="As kubectl's.")]


def get(words: list[str], namespace: str | None, context: str | None) -> Object:
    """What `kubectl WORDS -o json` prints."""
    decoded = json.loads(checked([*words, "-o", "json"], namespace, context))
    return decoded if isinstance(decoded, dict) else {}


def checked(words: list[str], namespace: str | None, context: str | None) -> str:
    """What `kubectl WORDS` prints; the plugin ends as it does, where it fails."""
    done = run(words, namespace, context)
    if done.returncode:
        typer.echo(done.stderr.strip(), err=True)
        raise typer.Exit(done.returncode)
    return done.stdout


def run(
    words: list[str], namespace: str | None, context: str | None
) -> subprocess.CompletedProcess[str]:
    """`kubectl WORDS`, however it ends."""
    program = shutil.which("kubectl")
    if program is None:
        fail("kubectl is not on PATH")
    chosen = ["-n", namespace] if namespace else []
    chosen += ["--context", context] if context else []
    return subprocess.run([program, *words, *chosen], capture_output=True, text=True, check=False)


def fail(why: str) -> NoReturn:
    """Say why, and end with status 1."""
    typer.echo(f"error: {why}", err=True)
    raise typer.Exit(1)
