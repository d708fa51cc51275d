"""`kubectl pds`: a kubectl plugin. It reads through kubectl itself, so every login works."""

import json
import shutil
import subprocess
from typing import Annotated, Any

import typer

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
    told = pds.get("status") or {}
    typer.echo(f"{name}  {told.get('endpoint', '')}")
    for rows in (_conditions(told), _roles(told), _pods(pods["items"])):
        typer.echo("\n" + table(rows))


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


@app.command()
def pause(name: str, namespace: Namespace = None, context: Context = None) -> None:
    """Stay at the step that a rollout has reached: sets spec.rollout.paused."""
    _patch(name, {"rollout": {"paused": True}}, namespace, context)
    typer.echo(f"{name}: rollouts are paused")


@app.command()
def resume(name: str, namespace: Namespace = None, context: Context = None) -> None:
    """Let rollouts go on: takes spec.rollout.paused away."""
    _patch(name, {"rollout": {"paused": None}}, namespace, context)
    typer.echo(f"{name}: rollouts go on")


def table(rows: list[list[str]]) -> str:
    """Columns as kubectl aligns them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("   ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _conditions(told: Object) -> list[list[str]]:
    keys = ("type", "status", "reason", "lastTransitionTime", "message")
    rows = [[str(item[key]) for key in keys] for item in told.get("conditions", [])]
    return [["CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE"], *rows]


def _roles(told: Object) -> list[list[str]]:
    keys = ("desired", "created", "ready", "updated", "warm", "draining")
    rows = [["ROLE", *(key.upper() for key in keys)]]
    for role in ("prefill", "decode", "unified", "router"):
        if role in told:
            rows.append([role, *(str(told[role].get(key, "")) for key in keys)])
    return rows


def _pods(pods: list[Object]) -> list[list[str]]:
    rows = [["POD", "ROLE", "REVISION", "ATTEMPT", "PHASE", "READY", "DRAINING"]]
    for pod in sorted(pods, key=lambda item: str(item["metadata"]["name"])):
        labels = pod["metadata"].get("labels") or {}
        conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions") or []}
        chosen = [labels.get(f"pdserving.io/{key}", "") for key in ("role", "revision", "attempt")]
        rows.append(
            [
                pod["metadata"]["name"],
                *chosen,
                pod["status"].get("phase", ""),
                conditions.get("Ready", ""),
                labels.get("pdserving.io/draining", ""),
            ]
        )
    return rows


def _patch(name: str, spec: Object, namespace: str | None, context: str | None) -> None:
    patch = json.dumps({"spec": spec})
    _get(["patch", "pdserving", name, "--type", "merge", "-p", patch], namespace, context)


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
