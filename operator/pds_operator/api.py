"""The Kubernetes API over aiohttp: plain objects in, plain objects out.

Not a client library's models: those cost tens of megabytes, and their line reader fails on
watch events over 128 KB.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import kopf

from pds_operator import errors, names
from pds_operator.settings import Settings

Object = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
WATCH_SECONDS = 290
REQUEST_SECONDS = 30.0
MANAGER = names.MANAGER


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
    "ControllerRevision": Resource("/apis/apps/v1", "controllerrevisions"),
    "PodDisruptionBudget": Resource("/apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": Resource("/apis/networking.k8s.io/v1", "networkpolicies"),
    "RoleBinding": Resource("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "Lease": Resource("/apis/coordination.k8s.io/v1", "leases"),
    names.KIND: Resource(f"/apis/{names.API_VERSION}", names.PLURAL),
}


class Api:
    """One connection pool to one API server. Use as an async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._info = login(settings)
        self._session: aiohttp.ClientSession | None = None
        self.writes: dict[str, int] = {}
        """Writes by verb and kind, Leases apart: an unchanged cluster costs none."""

    async def __aenter__(self) -> "Api":
        connector = aiohttp.TCPConnector(ssl=self._info.as_ssl_context(), limit=0)
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

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
        """Events after `version`, until the server ends the watch. Raises Gone to list anew."""
        params = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_SECONDS),
            **_selectors(selector),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=WATCH_SECONDS + 30)
        async with self._open("GET", self._path(kind, namespace), params, timeout) as response:
            await _checked(response)
            rest = b""
            async for piece in response.content.iter_any():
                *lines, rest = (rest + piece).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise errors.from_status(int(status.get("code") or 500), status)
                    yield event

    async def create(self, obj: Object, *, dry_run: bool = False) -> Object:
        """POST. Raises Conflict when the name is taken."""
        kind, meta = obj["kind"], obj["metadata"]
        params = {"fieldManager": MANAGER, **({"dryRun": "All"} if dry_run else {})}
        if not dry_run:
            self._count("create", kind)
        path = self._path(kind, meta["namespace"])
        return await self._call("POST", path, obj, params=params)

    async def apply(self, obj: Object) -> Object:
        """Server-side apply, forced; `metadata.uid` in it makes a vanished object a Conflict."""
        kind, meta = obj["kind"], obj["metadata"]
        self._count("apply", kind)
        return await self._call(
            "PATCH",
            self._path(kind, meta["namespace"], meta["name"]),
            obj,
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

    def _open(
        self, method: str, path: str, params: Mapping[str, str], timeout: aiohttp.ClientTimeout
    ) -> Any:
        if self._session is None:
            raise errors.SettingsError("the connection to the API server is not open")
        return self._session.request(
            method,
            self._info.server.rstrip("/") + path,
            params=params,
            headers=self._info.as_http_headers(),
            timeout=timeout,
        )

    async def _call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        params: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        if self._session is None:
            raise errors.SettingsError("the connection to the API server is not open")
        for last in (False, True):
            async with self._session.request(
                method,
                self._info.server.rstrip("/") + path,
                params=params or {},
                data=None if body is None else json.dumps(body).encode(),
                headers={"Content-Type": content_type, **self._info.as_http_headers()},
                timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            ) as response:
                if response.status == 401 and not last:
                    self._info = login(self._settings)  # projected tokens expire
                    continue
                return await _checked(response) or {}
        raise errors.ApiError(401, "Unauthorized", "the credentials were refused twice")


def login(settings: Settings) -> kopf.ConnectionInfo:
    """How to reach the API server: the pod's service account, else the kubeconfig.

    Raises:
        SettingsError: there is neither.
    """
    kopf_settings = kopf.OperatorSettings()
    info = kopf.login_with_service_account(settings=kopf_settings) or kopf.login_with_kubeconfig(
        settings=kopf_settings
    )
    if info is None:
        raise errors.SettingsError(
            "no service account and no kubeconfig: run in a pod, or set KUBECONFIG"
        )
    return info


async def _checked(response: aiohttp.ClientResponse) -> Object | None:
    """The body of a good answer (None for a stream that begins). Raises ApiError."""
    if response.status >= 400:
        text = await response.text()
        try:
            body = json.loads(text)
        except ValueError:
            body = {"message": text[:500]}
        raise errors.from_status(response.status, body)
    if "watch" in response.url.query:
        return None
    told = await response.json(content_type=None)
    return told if isinstance(told, dict) else {}


def _selectors(selector: str, fields: str = "") -> dict[str, str]:
    chosen = {"labelSelector": selector, "fieldSelector": fields}
    return {key: value for key, value in chosen.items() if value}


TRANSIENT = (aiohttp.ClientError, asyncio.TimeoutError, OSError)
"""What a broken connection raises: wait and try again."""
