"""`kubectl pds`: a kubectl plugin. It reads through kubectl itself, so every login works."""

import json
import shutil
import subprocess
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Object = dict[str, Any]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="As kubectl's.")]
Context = Annotated[str | None, typer.Option("--context", help="As kubectl's.")]


@app.callback()
def _pds() -> None:
    """Look at PDServings more closely than `kubectl get pds` does."""


@app.command()
def status(name: str, namespace: Namespace = None, context: Context = None) -> None:
    """Conditions, roles and pods of one PDServing."""
    pds = _get(["get", "pdserving", name], namespace, context)
    pods = _get(["get", "pods", "-l", f"pdserving.io/name={name}"], namespace, context)
    console, told = Console(), pds.get("status") or {}
    console.print(f"[bold]{name}[/] {told.get('endpoint', '')}", highlight=False)
    console.print(_conditions(told))
    console.print(_roles(told))
    console.print(_pods(pods["items"]))


@app.command()
def plan(name: str, namespace: Namespace = None, context: Context = None) -> None:
    """What is being done, and what stands in the way."""
    pds = _get(["get", "pdserving", name], namespace, context)
    told = pds.get("status") or {}
    for condition in told.get("conditions", []):
        if condition["type"] == "Progressing" or (
            condition["type"] == "Degraded" and condition["status"] == "True"
        ):
            typer.echo(f"{condition['type']}: {condition['reason']}: {condition['message']}")
    typer.echo(f"serving  {told.get('currentRevision') or '-'}")
    typer.echo(f"target   {told.get('targetRevision') or '-'}")


def _conditions(told: Object) -> Table:
    table = Table("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE", box=None)
    for item in told.get("conditions", []):
        table.add_row(
            item["type"],
            item["status"],
            item["reason"],
            item["lastTransitionTime"],
            item["message"],
        )
    return table


def _roles(told: Object) -> Table:
    keys = ("desired", "created", "ready", "updated", "warm", "draining")
    table = Table("ROLE", *(key.upper() for key in keys), box=None)
    for role in ("prefill", "decode", "unified"):
        if role in told:
            table.add_row(role, *(str(told[role].get(key, "")) for key in keys))
    router = told.get("router") or {}
    table.add_row("router", str(router.get("desired", "")), "", str(router.get("ready", "")))
    return table


def _pods(pods: list[Object]) -> Table:
    table = Table("POD", "ROLE", "REVISION", "ATTEMPT", "PHASE", "READY", "DRAINING", box=None)
    for pod in sorted(pods, key=lambda item: str(item["metadata"]["name"])):
        labels = pod["metadata"].get("labels") or {}
        conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions") or []}
        table.add_row(
            pod["metadata"]["name"],
            labels.get("pdserving.io/role", ""),
            labels.get("pdserving.io/revision", ""),
            labels.get("pdserving.io/attempt", ""),
            pod["status"].get("phase", ""),
            conditions.get("Ready", ""),
            labels.get("pdserving.io/draining", ""),
        )
    return table


def _get(words: list[str], namespace: str | None, context: str | None) -> Object:
    """What `kubectl WORDS -o json` prints."""
    program = shutil.which("kubectl")
    if program is None:
        typer.echo("error: kubectl is not on PATH", err=True)
        raise typer.Exit(1)
    chosen = ["-n", namespace] if namespace else []
    chosen += ["--context", context] if context else []
    done = subprocess.run([program, *words, *chosen, "-o", "json"], capture_output=True, text=True)
    if done.returncode:
        typer.echo(done.stderr.strip(), err=True)
        raise typer.Exit(done.returncode)
    told = json.loads(done.stdout)
    return told if isinstance(told, dict) else {}


def main() -> None:
    """The console script."""
    app()
