"""`kubectl pds cache`: the keys of compile caches that PDServings share."""

from collections.abc import Iterable
from typing import Annotated, Any

import typer

from pds_operator import names
from pds_operator.kubectl import calls, views
from pds_operator.kubectl.calls import Context, Namespace
from pds_operator.render import volumes

app = typer.Typer(no_args_is_help=True)
Object = dict[str, Any]


@app.callback()
def _cache() -> None:
    """The keys of compile caches on claims, which the PDServings of a namespace share."""


@app.command()
def prune(
    yes: Annotated[bool, typer.Option("--yes", help="Delete them; else they are listed.")] = False,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Delete the keys of claims that no PDServing uses: what a claim holds is compiled again."""
    chosen = ",".join(f"{key}={value}" for key, value in names.seal_labels().items())
    seals = calls.get(["get", "secrets", "-l", chosen], namespace, context)["items"]
    rows = [["SECRET", "CLAIM", "USED BY", ""]]
    # Read after the keys: a PDServing that has made one by now is among these.
    users = _users(namespace, context)
    for secret in seals:
        meta = secret["metadata"]
        claim = (meta.get("annotations") or {}).get(names.CLAIM, "")
        by = sorted(users.get(claim, set()) | users.get(meta["name"], set()))
        said = "" if by else "deleted" if yes else "would be deleted"
        if yes and not by:
            path = f"/api/v1/namespaces/{meta['namespace']}/secrets/{meta['name']}"
            calls.checked(["delete", "--raw", path], None, context)
        rows.append([meta["name"], claim, ", ".join(by) or "-", said])
    typer.echo(views.table(rows))
    if not yes and any(row[-1] for row in rows):
        typer.echo("nothing was deleted: kubectl pds cache prune --yes does it")


def _users(namespace: str | None, context: str | None) -> dict[str, set[str]]:
    """By a claim, or a Secret that seals one: the PDServings that use it, or may go back to it."""
    found: dict[str, set[str]] = {}
    for pds in calls.get(["get", "pdservings"], namespace, context)["items"]:
        name = pds["metadata"]["name"]
        found.setdefault(_claim(pds["spec"], name), set()).add(name)
    words = ["get", "controllerrevisions", "-l", f"{names.MANAGED_BY}={names.MANAGER}"]
    for stored in calls.get(words, namespace, context)["items"]:
        name = (stored["metadata"].get("labels") or {}).get(names.NAME, "")
        for secret in _mounted(stored.get("data") or {}):
            found.setdefault(secret, set()).add(name)
    return found


def _claim(spec: Object, name: str) -> str:
    """Of a spec that may be of another version: whatever it can be read for."""
    given = (spec.get("compileCache") or {}).get("volume") or {}
    return str(given.get("existingClaim") or (names.cache_claim(name) if "claim" in given else ""))


def _mounted(data: Object) -> Iterable[str]:
    return volumes.sealed(data)[1]
