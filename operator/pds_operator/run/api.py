"""The Kubernetes API by the kubernetes package: plain objects in, plain objects out.

Not its models, which take time and memory for a thousand pods; nor its Watch, which makes a client
of its own each time.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiohttp
import yaml
from aiohttp.http import HttpProcessingError
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import DynamicApiError, UnauthorizedError

from pds_operator import errors, names
from pds_operator.run.server_clock import ServerClock

Object = dict[str, Any]

APPLY = "application/apply-patch+yaml; charset=utf-8"
YAML = "application/yaml; charset=utf-8"
MERGE = "application/merge-patch+json"
DRY_RUN = {"dryRun": "All", "fieldValidation": "Strict"}
WATCH_SECONDS = 60
"""How long the server is asked to keep a watch. It sends bookmarks as seldom, and none at all while
nothing has happened: a short watch ends by itself then, with a bookmark where there is one."""
SILENCE_SECONDS = 90
"""Longer silence than that means that the connection is dead, though nobody closed it."""
END_SECONDS = 5
"""Until a watch that sent an error has ended."""
WATCH_TIMEOUT = aiohttp.ClientTimeout(sock_connect=10, sock_read=SILENCE_SECONDS)
TIMEOUT = aiohttp.ClientTimeout(total=30)
MANAGER = names.MANAGER
MALFORMED = (config.ConfigException, OSError, ValueError, TypeError, AttributeError, yaml.YAMLError)
"""What the loader stumbles over in a kubeconfig."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Where a kind is found."""

    prefix: str
    plural: str


RESOURCES: Mapping[str, Resource] = {
    "Pod": Resource("/api/v1", "pods"),
    "Service": Resource("/api/v1", "services"),
    "ConfigMap": Resource("/api/v1", "configmaps"),
    "Secret": Resource("/api/v1", "secrets"),
    "Event": Resource("/api/v1", "events"),
    "ServiceAccount": Resource("/api/v1", "serviceaccounts"),
    "PersistentVolumeClaim": Resource("/api/v1", "persistentvolumeclaims"),
    "Deployment": Resource("/apis/apps/v1", "deployments"),
    "ReplicaSet": Resource("/apis/apps/v1", "replicasets"),
    "ControllerRevision": Resource("/apis/apps/v1", "controllerrevisions"),
    "PodDisruptionBudget": Resource("/apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": Resource("/apis/networking.k8s.io/v1", "networkpolicies"),
    "EndpointSlice": Resource("/apis/discovery.k8s.io/v1", "endpointslices"),
    "Job": Resource("/apis/batch/v1", "jobs"),
    "RoleBinding": Resource("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "Lease": Resource("/apis/coordination.k8s.io/v1", "leases"),
    names.KIND: Resource(f"/apis/{names.API_VERSION}", names.PLURAL),
    names.ROLE_KIND: Resource(f"/apis/{names.API_VERSION}", names.ROLE_PLURAL),
    **{
        f"PodGroup.{version}": Resource(f"/apis/{version}", "podgroups")
        for version in (
            "scheduling.volcano.sh/v1beta1",
            "scheduling.x-k8s.io/v1alpha1",
            "scheduling.run.ai/v2alpha2",
        )
    },
}


def kind_of(obj: Object) -> str:
    """What the methods here call the kind of `obj`: PodGroup is the name of several."""
    kind = str(obj["kind"])
    return f"{kind}.{obj['apiVersion']}" if kind == "PodGroup" else kind


class Api:
    """One connection pool to one API server. Use as an async context manager."""

    def __init__(self, configuration: Configuration) -> None:
        configuration.connection_pool_maxsize = 0  # no limit: each watch holds a connection
        # As kopf does: no netrc and no proxy, which are meant for the world outside.
        configuration.client_session_kwargs = {"trust_env": False}
        self._client = DynamicClient(ApiClient(configuration))
        self.writes: dict[str, int] = {}
        """Writes by verb and kind, Leases apart: an unchanged cluster costs none."""
        self.clock = ServerClock()

    async def __aenter__(self) -> "Api":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.client.close()

    async def get(self, kind: str, namespace: str, name: str) -> Object:
        """One object. Raises Missing."""
        return await self._call("GET", self._path(kind, namespace, name))

    async def list(
        self, kind: str, namespace: str | None, selector: str = "", fields: str = ""
    ) -> tuple[list[Object], str]:
        """(objects, resourceVersion) of a namespace, or of all of them."""
        params = _selectors(selector, fields)
        body = await self._call("GET", self._path(kind, namespace), params=params)
        items = body.get("items") or []
        for item in items:
            # Items of a list carry neither, objects from everywhere else both.
            item.setdefault("kind", kind)
            item.setdefault("apiVersion", body.get("apiVersion", ""))
        return items, body["metadata"]["resourceVersion"]

    async def watch(
        self, kind: str, namespace: str | None, version: str, selector: str = ""
    ) -> AsyncIterator[Object]:
        """Events after `version`, until the server ends the watch.

        Raises:
            Gone: list anew.
            SILENT: nothing has come for so long that the connection must be dead.
        """
        params = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
            **_selectors(selector),
        }
        path = self._path(kind, namespace)
        # A server answers before it has anything to send.
        async with asyncio.timeout(TIMEOUT.total):
            opened = await self._request("GET", path, params=params, within=WATCH_TIMEOUT)
        async with opened as answer:
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    with contextlib.suppress(TimeoutError):  # to its end: the connection is whole
                        await asyncio.wait_for(answer.content.read(), END_SECONDS)
                    raise errors.from_status(int(status.get("code") or 500), status)
                yield event

    async def create(self, obj: Object, *, dry_run: bool = False) -> Object:
        """POST. Raises Conflict when the name is taken.

        A dry run refuses fields that the server does not know, which it would drop in silence.

        A ControllerRevision goes as YAML: its data is immutable byte by byte, and what the server
        keeps of JSON is what it was sent, spaces and all, which no later patch of it writes back.
        """
        kind, meta = kind_of(obj), obj["metadata"]
        params = {"fieldManager": MANAGER, **(DRY_RUN if dry_run else {})}
        if not dry_run:
            self._count("create", kind)
        path = self._path(kind, meta["namespace"])
        if kind == "ControllerRevision":
            text = _yaml(obj)
            return await self._call("POST", path, text, params=params, content_type=YAML)
        return await self._call("POST", path, obj, params=params)

    async def apply(self, obj: Object) -> Object:
        """Server-side apply, forced; `metadata.uid` in it makes a vanished object a Conflict."""
        kind, meta = obj["kind"], obj["metadata"]
        self._count("apply", kind)
        return await self._call(
            "PATCH",
            self._path(kind, meta["namespace"], meta["name"]),
            _yaml(obj),
            params={"fieldManager": MANAGER, "force": "true"},
            content_type=APPLY,
        )

    async def merge(
        self, kind: str, namespace: str, name: str, patch: Object, subresource: str = ""
    ) -> Object:
        """Merge patch."""
        self._count("patch", kind)
        path = self._path(kind, namespace, name) + (f"/{subresource}" if subresource else "")
        return await self._call(
            "PATCH", path, patch, params={"fieldManager": MANAGER}, content_type=MERGE
        )

    async def strategic(
        self, kind: str, namespace: str, name: str, patch: Object, subresource: str
    ) -> Object:
        """Strategic merge patch: lists of conditions merge by type."""
        self._count("patch", kind)
        return await self._call(
            "PATCH",
            f"{self._path(kind, namespace, name)}/{subresource}",
            patch,
            params={"fieldManager": MANAGER},
            content_type="application/strategic-merge-patch+json",
        )

    async def replace(self, obj: Object) -> Object:
        """PUT of an object that was read: its resourceVersion makes a race a Conflict."""
        kind, meta = obj["kind"], obj["metadata"]
        self._count("replace", kind)
        return await self._call("PUT", self._path(kind, meta["namespace"], meta["name"]), obj)

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str, grace: int | None = None
    ) -> None:
        """DELETE of exactly this uid, dependents in the background."""
        self._count("delete", kind)
        options: Object = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        await self._call("DELETE", self._path(kind, namespace, name), options)

    def _count(self, verb: str, kind: str) -> None:
        if kind != "Lease":
            key = f"{verb} {kind}"
            self.writes[key] = self.writes.get(key, 0) + 1

    def _path(self, kind: str, namespace: str | None, name: str = "") -> str:
        resource = RESOURCES[kind]
        inside = f"/namespaces/{namespace}" if namespace else ""
        return f"{resource.prefix}{inside}/{resource.plural}" + (f"/{name}" if name else "")

    async def _call(
        self, method: str, path: str, body: Object | str | None = None, **more: Any
    ) -> Object:
        async with await self._request(method, path, body, **more) as answer:
            decoded = json.loads(await answer.read() or b"{}")
        return decoded if isinstance(decoded, dict) else {}

    async def _request(
        self,
        method: str,
        path: str,
        body: Object | str | None = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        within: aiohttp.ClientTimeout | None = None,
    ) -> aiohttp.ClientResponse:
        """A good answer, its body not read yet. Raises ApiError."""
        ask = partial(
            self._client.request,
            method,
            path,
            body,
            serialize=False,
            query_params=list((params or {}).items()),
            content_type=content_type,
            _request_timeout=within or TIMEOUT,
        )
        asked = self.clock.asked()
        try:
            try:
                response: aiohttp.ClientResponse = await ask()
            except UnauthorizedError:
                with contextlib.suppress(errors.SettingsError):
                    await login(self._client.configuration)  # a plugin's tokens expire
                response = await ask()
        except DynamicApiError as error:
            after = str((error.headers or {}).get("Retry-After") or "")
            raise errors.from_status(error.status, _error_body(error.body or ""), after) from error
        self.clock.heard(response.headers.get("Date", ""), asked)
        return response


async def login(found: Configuration | None = None) -> Configuration:
    """How to reach the API server: the pod's service account, else the kubeconfig.

    The account's token is read anew each minute as it is used.

    Raises:
        SettingsError: there is neither.
    """
    found = found or Configuration()
    try:
        config.load_incluster_config(client_configuration=found)
    except config.ConfigException:
        try:
            await config.load_kube_config(client_configuration=found)
        except MALFORMED as error:
            raise errors.SettingsError(
                f"no service account and no kubeconfig ({error}): run in a pod, or set KUBECONFIG"
            ) from error
    return found


UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""What JSON may hold as it is and YAML only escaped."""


def _yaml(obj: Object) -> str:
    """JSON that YAML reads the same: a pair of escaped surrogates is no character to YAML."""
    text = json.dumps(obj, ensure_ascii=False, separators=(",", ": "))
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _error_body(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return {"message": text[:500]}


def _selectors(selector: str, fields: str = "") -> dict[str, str]:
    chosen = {"labelSelector": selector, "fieldSelector": fields}
    return {key: value for key, value in chosen.items() if value}


SILENT = aiohttp.SocketTimeoutError
"""What a watch raises when its connection is dead, and nobody has closed it."""
TRANSIENT = (
    aiohttp.ClientError,
    asyncio.TimeoutError,
    OSError,
    HttpProcessingError,  # a watch's line of more than 4 MiB: its object is listed anew
    json.JSONDecodeError,
)
"""What a broken connection raises: wait and try again."""
