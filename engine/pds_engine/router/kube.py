"""A slim list and watch of Pods over aiohttp.

The kubernetes package would cost more memory than the rest of the router together.
"""

import asyncio
import base64
import logging
import random
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yaml

from pds_engine.errors import ConfigError, PdsError
from pds_engine.router.config import KubernetesConfig
from pds_engine.router.pods import Pod

logger = logging.getLogger(__name__)
WATCH_SECONDS = 240
"""How long one watch is asked to last; silence 30 s beyond it means that the connection is dead."""
PAGE = 500
MAX_PAUSE = 10.0


class KubeError(PdsError):
    """The API server refused, or is not to be reached."""

    code = "kube_error"

    def __init__(self, message: str, *, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how to prove who we are. `token` is asked anew: it rotates."""

    server: str
    tls: ssl.SSLContext | bool
    token: Callable[[], str | None]


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _PodList(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: list[Pod] = []


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Bookmark(msgspec.Struct, frozen=True):
    metadata: _ListMeta


class _Status(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""


class PodWatch:
    """Keeps `pods` (by UID) as the API server has them; `changed` is called after every change."""

    def __init__(
        self, access: Access, namespace: str, selector: str, changed: Callable[[], None]
    ) -> None:
        self._access = access
        self._url = f"{access.server}/api/v1/namespaces/{namespace}/pods"
        self._selector = selector
        self._changed = changed
        self.pods: dict[str, Pod] = {}
        self.trouble = ""
        """Why the API server was not to be reached last; what was known then still holds."""

    async def run(self) -> None:
        """List, watch, and start over, until cancelled."""
        pause = 0.1
        # The read time-out ends a watch whose peer is gone without a word.
        timeout = aiohttp.ClientTimeout(total=None, connect=10, sock_read=WATCH_SECONDS + 30)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                try:
                    version = await self._list(session)
                    self.trouble, pause = "", 0.1
                    await self._follow(session, version)
                except KubeError as error:
                    if error.status == 410:
                        logger.info("the watch is too old: listing anew")
                        continue
                    self.trouble = str(error)
                except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
                    self.trouble = f"{type(error).__name__}: {error}"
                logger.warning("the API server is not to be followed", extra={"why": self.trouble})
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, MAX_PAUSE)

    async def _list(self, session: aiohttp.ClientSession) -> str:
        pods: dict[str, Pod] = {}
        token = ""
        while True:
            query = {"labelSelector": self._selector, "limit": str(PAGE)}
            if token:
                query["continue"] = token
            async with session.get(self._url, params=query, **self._options()) as response:
                await _check(response)
                page = msgspec.json.decode(await response.read(), type=_PodList)
            pods.update((pod.metadata.uid, pod) for pod in page.items)
            token = page.metadata.continue_
            if not token:
                break
        self.pods = pods
        self._changed()
        return page.metadata.resource_version

    async def _follow(self, session: aiohttp.ClientSession, version: str) -> None:
        """Watch from `version`; a clean end of file goes on from the last version seen."""
        while True:
            query = {
                "labelSelector": self._selector,
                "watch": "1",
                "allowWatchBookmarks": "true",
                "resourceVersion": version,
                "timeoutSeconds": str(WATCH_SECONDS),
            }
            began = asyncio.get_running_loop().time()
            async with session.get(self._url, params=query, **self._options()) as response:
                await _check(response)
                async for line in lines(response.content.iter_any()):
                    version = self._apply(line)
            if asyncio.get_running_loop().time() - began < 1:
                await asyncio.sleep(
                    random.uniform(0.1, 0.3)
                )  # a server that ends every watch at once

    def _apply(self, line: bytes) -> str:
        event = msgspec.json.decode(line, type=_Event)
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=_Status)
            raise KubeError(f"watch: {status.message or status.code}", status=status.code)
        if event.type == "BOOKMARK":
            return msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
        pod = msgspec.json.decode(event.object, type=Pod)
        if event.type == "DELETED":
            self.pods.pop(pod.metadata.uid, None)
        else:
            self.pods[pod.metadata.uid] = pod
        self._changed()
        return pod.metadata.resource_version

    def _options(self) -> dict[str, Any]:
        token = self._access.token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return {"headers": headers, "ssl": self._access.tls}


async def lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Whole lines of a stream of bytes; a pod's may be larger than any stream reader's limit."""
    held = b""
    async for chunk in chunks:
        *whole, held = (held + chunk).split(b"\n")
        for line in whole:
            if line:
                yield line


async def _check(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        text = (await response.text())[:300]
        raise KubeError(f"the API server answers {response.status}: {text}", status=response.status)


def access(config: KubernetesConfig) -> Access:
    """From a kubeconfig when one is named, else the pod's service account.

    Raises:
        ConfigError: neither is there, or the kubeconfig wants what is not supported.
    """
    if config.kubeconfig is not None:
        return _from_kubeconfig(Path(str(config.kubeconfig).split(":")[0]), config.context)
    token = config.account_dir / "token"
    if not config.host or not token.exists():
        raise ConfigError(
            "there is no Kubernetes to find backends in",
            hint="name engines by --backend http://host:port, or a kubeconfig",
        )
    host = f"[{config.host}]" if ":" in config.host else config.host
    tls = ssl.create_default_context(cafile=str(config.account_dir / "ca.crt"))
    return Access(f"https://{host}:{config.port}", tls, lambda: token.read_text().strip())


def _from_kubeconfig(path: Path, context: str | None) -> Access:
    try:
        tree = yaml.safe_load(path.read_text())
        name = context or tree["current-context"]
        chosen = _named(tree["contexts"], name)["context"]
        cluster = _named(tree["clusters"], chosen["cluster"])["cluster"]
        user = _named(tree.get("users") or [], chosen.get("user", ""))["user"] or {}
        server = str(cluster["server"]).rstrip("/")
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot use the kubeconfig {path}: {error}") from error
    if "exec" in user or "auth-provider" in user:
        raise ConfigError(
            f"the kubeconfig {path} wants a credential plugin, which the router does not run",
            hint="use a context with a token or a client certificate",
        )
    base = path.parent
    tls: ssl.SSLContext | bool = True
    if server.startswith("https"):
        tls = ssl.create_default_context(
            cafile=str(base / cluster["certificate-authority"])
            if "certificate-authority" in cluster
            else None,
            cadata=_decoded(cluster.get("certificate-authority-data")),
        )
        if cluster.get("insecure-skip-tls-verify"):
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        _load_client(tls, user, base)
    return Access(server, tls, _token(user, base))


def _named(entries: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for entry in entries:
        if entry.get("name") == name:
            return entry
    raise KeyError(f"no entry named {name!r}")


def _decoded(data: str | None) -> str | None:
    return base64.b64decode(data).decode() if data else None


def _token(user: dict[str, Any], base: Path) -> Callable[[], str | None]:
    if "tokenFile" in user:
        path = base / user["tokenFile"]
        return lambda: path.read_text().strip()
    return lambda: user.get("token")


def _load_client(tls: ssl.SSLContext, user: dict[str, Any], base: Path) -> None:
    if "client-certificate" in user:
        tls.load_cert_chain(base / user["client-certificate"], base / user["client-key"])
    elif "client-certificate-data" in user:
        with tempfile.NamedTemporaryFile() as pair:  # ssl reads certificates from files only
            for part in ("client-certificate-data", "client-key-data"):
                pair.write(base64.b64decode(user[part]) + b"\n")
            pair.flush()
            tls.load_cert_chain(pair.name)
