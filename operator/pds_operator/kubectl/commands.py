"""`kubectl pds`: a kubectl plugin. It reads through kubectl itself, so every login works."""

import contextlib
import datetime
import json
from collections import Counter
from typing import Annotated, Any

import typer

from pds_operator import names
from pds_operator.decide import keyring
from pds_operator.decide.preview import Existing, preview
from pds_operator.errors import SpecError
from pds_operator.facts.answers import BackendAnswer, BadAnswer, backends
from pds_operator.facts.observed import Observed, Pod, Revision, rfc3339
from pds_operator.facts.reading import pod_facts, revision_facts
from pds_operator.kubectl import cache, calls, views, warming
from pds_operator.kubectl.calls import Context, Namespace
from pds_operator.revision import affecting, digest, restored

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(cache.app, name="cache")
Object = dict[str, Any]


@app.callback()
def _pds() -> None:
    """Look at PDServings more closely than `kubectl get pds` does."""


@app.command()
def status(name: str, namespace: Namespace = None, context: Context = None) -> None:
    """Conditions, and the tree of roles and groups: revision, phase, requests under way; how long
    groups took to start; and how far warm-ups are."""
    pds = calls.get(["get", "pdserving", name], namespace, context)
    reported = pds.get("status") or {}
    items = _items(name, namespace, context)
    pods, routers = _pods(items), _routers(items)
    typer.echo(f"{name}  {reported.get('endpoint', '')}")
    for line in views.unseen(pds):
        typer.echo(line)
    told = _told(pds, routers, context)
    in_flight: Counter[str] = Counter()
    for item in told:
        in_flight[item.pod] += item.in_flight
    for rows in (views.conditions(reported), views.tree(reported, pods, in_flight)):
        typer.echo("\n" + views.table(rows))
    startups = {item.pod: item.startup for item in told if item.startup}
    under_way = _warming(pds["metadata"]["namespace"], items, context)
    for rows in (views.starts(startups), under_way):
        if len(rows) > 1:
            typer.echo("\n" + views.table(rows))


@app.command()
def plan(
    name: Annotated[str, typer.Argument(help="Left out: the PDServing of --filename.")] = "",
    filename: Annotated[
        str, typer.Option("--filename", "-f", help="An edit: what it would do, without doing it.")
    ] = "",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """What is being done and stands in the way; with -f each step that an edit would take."""
    if filename:
        _preview(name, filename, namespace, context)
        return
    if not name:
        calls.fail("give the name of a PDServing, or -f FILE")
    pds = calls.get(["get", "pdserving", name], namespace, context)
    reported = pds.get("status") or {}
    for line in views.unseen(pds):
        typer.echo(line)
    for condition in reported.get("conditions", []):
        if condition["type"] == "Progressing" or (
            condition["type"] == "Degraded" and condition["status"] == "True"
        ):
            typer.echo(f"{condition['type']}: {condition['reason']}: {condition['message']}")
    typer.echo(f"serving  {reported.get('currentRevision') or '-'}")
    typer.echo(f"target   {reported.get('targetRevision') or '-'}")


@app.command()
def history(name: str, namespace: Namespace = None, context: Context = None) -> None:
    """The stored revisions: which serves, which is the target, which has failed and why."""
    pds = calls.get(["get", "pdserving", name], namespace, context)
    reported = pds.get("status") or {}
    rows = [["NUMBER", "REVISION", "IMAGE", "SERVED", "STATE"]]
    stored = _revisions(name, namespace, context)
    now = digest(pds["spec"], _active(stored))
    for item in stored:
        full, wanted = names.revision(name, item.digest), item.digest == now
        states = ["spec"] if wanted else []
        states += ["target"] if reported.get("targetRevision") == full else []
        states += ["current"] if reported.get("currentRevision") == full else []
        states += [f"failed: {item.failed}"] if item.failed else []
        served = rfc3339(item.served) if item.served is not None else ""
        image = str(item.data.get("spec", {}).get("image") or "")
        rows.append([str(item.number), item.digest, image, served, ", ".join(states)])
    typer.echo(views.table(rows))


@app.command()
def undo(
    name: str,
    to: Annotated[str, typer.Option(help="A revision's name or number, of `history`.")] = "",
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Write an older revision's spec: by default the one that served last. Replicas stay."""
    pds = calls.get(["get", "pdserving", name], namespace, context)
    now = affecting(pds["spec"])  # which it may have had with other keys too
    revisions = _revisions(name, namespace, context)
    stored = [item for item in revisions if item.data.get("spec") != now]
    if to:
        wanted = [r for r in stored if to in (str(r.number), r.digest, f"{name}-{r.digest}")]
    else:
        wanted = [item for item in stored if not item.failed]
    if not wanted:
        calls.fail(f"no revision {to or 'that served before'}: see kubectl pds history {name}")
    chosen = max(wanted, key=lambda item: (item.served or 0.0, item.number))
    _patch(
        name, changes(pds["spec"], restored(pds["spec"], chosen.data["spec"])), namespace, context
    )
    typer.echo(f"{name}: the spec of revision {chosen.digest} (number {chosen.number}) is back")


@app.command()
def retry(name: str, namespace: Namespace = None, context: Context = None) -> None:
    """Try the spec's revision again that was marked as failed."""
    pds = calls.get(["get", "pdserving", name], namespace, context)
    stored = _revisions(name, namespace, context)
    wanted = digest(pds["spec"], _active(stored))
    failed = [item for item in stored if item.failed]
    if wanted not in [item.digest for item in failed]:
        calls.fail(f"revision {wanted} of the spec is not marked as failed")
    target = names.revision(name, wanted)
    patch = json.dumps({"metadata": {"annotations": {names.FAILED: None}}})
    words = ["patch", "controllerrevision", target, "--type", "merge", "-p", patch]
    calls.get(words, namespace, context)
    typer.echo(f"{name}: revision {wanted} is tried again")


@app.command()
def restart(name: str, namespace: Namespace = None, context: Context = None) -> None:
    """Replace all groups step by step: writes the time to spec.restartedAt."""
    moment = rfc3339(datetime.datetime.now(datetime.UTC).timestamp())
    _patch(name, {"restartedAt": moment}, namespace, context)
    typer.echo(f"{name}: restarts as a new revision ({moment})")


@app.command(name="rotate-keys")
def rotate_keys(name: str, namespace: Namespace = None, context: Context = None) -> None:
    """Replace the control keys, and with them all groups, step by step."""
    pods = _pods(_items(name, namespace, context))
    key = _active(_revisions(name, namespace, context))
    older = [pod.name for pod in pods if pod.key != key]
    if older:
        calls.fail(
            f"keys are being rotated: {len(older)} pods have older ones ({', '.join(older[:3])})"
        )
    moment = rfc3339(datetime.datetime.now(datetime.UTC).timestamp())
    patch = json.dumps({"metadata": {"annotations": {names.ROTATE: moment}}})
    words = ["patch", "pdserving", name, "--type", "merge", "-p", patch]
    calls.get(words, namespace, context)
    typer.echo(f"{name}: groups with new control keys take the place of the others ({moment})")


def changes(old: Object, new: Object) -> Object:
    """The merge patch that makes `new` of `old`."""
    patch: Object = dict.fromkeys(old.keys() - new.keys())
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            inner = changes(old[key], value)
            patch |= {key: inner} if inner else {}
        elif old.get(key) != value:
            patch[key] = value
    return patch


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


def _preview(name: str, filename: str, namespace: str | None, context: str | None) -> None:
    """The API server says what the edit comes to, with its own checks."""
    edit = calls.get(["apply", "--dry-run=server", "-f", filename], namespace, context)
    found = [item for item in edit.get("items", [edit]) if item.get("kind") == names.KIND]
    chosen = [item for item in found if name in ("", item["metadata"]["name"])]
    if len(chosen) != 1:
        calls.fail(f"{filename} holds {len(chosen)} PDServings of that name: name one")
    meta = chosen[0]["metadata"]
    place = meta.get("namespace") or namespace
    existing = _existing(meta["name"], place, context)
    now = datetime.datetime.now(datetime.UTC).timestamp()
    try:
        lines = preview(meta["name"], chosen[0]["spec"], existing, now)
    except SpecError as error:
        calls.fail(f"{error.reason}: {error.message}; what runs would go on as it is")
    for line in lines:
        typer.echo(line)


def _existing(name: str, namespace: str | None, context: str | None) -> Existing:
    """What there is of the PDServing of that name."""
    pods = _pods(_items(name, namespace, context))
    stored = {item.digest: item for item in _revisions(name, namespace, context)}
    words = ["get", "pdservingroles", "-l", f"{names.NAME}={name}"]
    children = calls.get(words, namespace, context)["items"]
    words = ["get", "pdservings", "--field-selector", f"metadata.name={name}"]
    own = calls.get(words, namespace, context)["items"]
    return Existing(
        pods,
        stored,
        {(names.ROLE_KIND, item["metadata"]["name"]): item for item in children},
        own[0]["spec"] if own else {},
    )


def _items(name: str, namespace: str | None, context: str | None) -> list[Object]:
    """All pods of a PDServing."""
    words = ["get", "pods", "-l", f"{names.NAME}={name}"]
    items: list[Object] = calls.get(words, namespace, context)["items"]
    return items


def _pods(items: list[Object]) -> list[Pod]:
    """Those of engines."""
    return [facts for item in items if (facts := pod_facts(item)) is not None]


def _routers(items: list[Object]) -> list[Object]:
    return [i for i in items if (i["metadata"].get("labels") or {}).get(names.ROLE) == "router"]


def _warming(namespace: str, items: list[Object], context: str | None) -> list[list[str]]:
    """How far each warm-up is, by its log."""
    rows = [["WARM-UP", "CONTAINER", "COMPILED"]]
    for each in warming.warming(items):
        place = f"/api/v1/namespaces/{namespace}/pods/{each.pod}/log"
        path = f"{place}?container={each.container}&tailLines={warming.TAIL_LINES}"
        done = calls.run(["get", "--raw", path], None, context)
        said = done.stderr.strip() if done.returncode else warming.progress(done.stdout)
        rows.append([each.pod, each.container, said])
    return rows


def _told(pds: Object, routers: list[Object], context: str | None) -> list[BackendAnswer]:
    """What routers answer of the groups, through the API server; of those that do."""
    told: list[BackendAnswer] = []
    for router in routers:
        place = f"namespaces/{pds['metadata']['namespace']}/pods/{router['metadata']['name']}"
        path = f"/api/v1/{place}:{names.HTTP_PORT}/proxy/pds/backends"
        done = calls.run(["get", "--raw", path], None, context)
        if done.returncode == 0:
            with contextlib.suppress(BadAnswer):  # it wears a router's labels, and is none
                told += backends(done.stdout)
    return told


def _revisions(name: str, namespace: str | None, context: str | None) -> list[Revision]:
    words = ["get", "controllerrevisions", "-l", f"{names.NAME}={name}"]
    items = calls.get(words, namespace, context)["items"]
    return sorted((revision_facts(item, name) for item in items), key=lambda item: item.number)


def _active(stored: list[Revision]) -> str:
    """The id of the control key that the spec's revision has."""
    return keyring.active(Observed(revisions={item.digest: item for item in stored}))


def _patch(name: str, spec: Object, namespace: str | None, context: str | None) -> None:
    patch = json.dumps({"spec": spec})
    calls.get(["patch", "pdserving", name, "--type", "merge", "-p", patch], namespace, context)


def main() -> None:
    """The console script."""
    app()
