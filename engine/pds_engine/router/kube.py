"""A list and watch of Pods by the kubernetes package's client, raw: msgspec takes the few fields
that decide about routing, where its models would hold whole pods.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress

import aiohttp
import msgspec
import yaml
from aiohttp.http import HttpProcessingError
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.dynamic import DynamicClient
from kubernetes.aio.dynamic.exceptions import DynamicApiError

from pds_engine.errors import ConfigError, PdsError
from pds_engine.router.config import KubernetesConfig
from pds_engine.router.pods import Pod

logger = logging.getLogger(__name__)
WATCH_SECONDS = 60
"""How long the API server is to keep one watch open."""
LIST_TIMEOUT = aiohttp.ClientTimeout(total=30)
WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, connect=10, sock_read=WATCH_SECONDS + 30)
"""A longer silence means that the connection is dead, though nobody closed it."""
SILENT = aiohttp.SocketTimeoutError
PAGE = 500
MAX_PAUSE = 10.0
BROKEN = (aiohttp.ClientError, OSError, HttpProcessingError, msgspec.DecodeError)
"""What a broken connection raises, and a line of more than 4 MiB, whose pod is listed anew."""
MALFORMED = (config.ConfigException, OSError, ValueError, TypeError, AttributeError, yaml.YAMLError)
"""What the loader raises on a malformed kubeconfig."""


class KubeError(PdsError):
    """The API server refused, or cannot be reached."""

    code = "kube_error"

    def __init__(self, message: str, *, answered: int = 0) -> None:
        super().__init__(message)
        self.answered = answered
        """HTTP's status of its answer; 0: there was none."""


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
        self,
        kubernetes: KubernetesConfig,
        namespace: str,
        selector: str,
        changed: Callable[[], None],
    ) -> None:
        self._kubernetes = kubernetes
        # No netrc and no proxy: they are meant for the world outside.
        self._reached = Configuration(client_session_kwargs={"trust_env": False})
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._selector = selector
        self._changed = changed
        self.pods: dict[str, Pod] = {}
        self.trouble = ""
        """Why the API server could not be reached last; `pods` stays as it was."""

    async def login(self) -> None:
        """From a kubeconfig when one is named, else as the pod's service account.

        Raises:
            ConfigError: neither is there, or the kubeconfig cannot be used.
        """
        path = self._kubernetes.kubeconfig
        try:
            if path is None:
                config.load_incluster_config(client_configuration=self._reached)
            else:
                await config.load_kube_config(
                    str(path), self._kubernetes.context, client_configuration=self._reached
                )
        except MALFORMED as error:
            raise ConfigError(
                f"there is no Kubernetes to find backends in: {path or 'in the pod'}: {error}",
                hint="name engines by --backend http://host:port, or a kubeconfig",
            ) from error

    async def run(self) -> None:
        """List, watch, and start over, until cancelled. `login` comes first."""
        pause = 0.1
        async with ApiClient(self._reached) as client:
            api = DynamicClient(client)
            while True:
                try:
                    version = await self._list(api)
                    self.trouble, pause = "", 0.1
                    await self._follow(api, version)
                except KubeError as error:
                    if error.answered == 410:
                        logger.info("the watch is too old: listing anew")
                        continue
                    self.trouble = str(error)
                    if error.answered == 401:  # a plugin's tokens expire
                        with suppress(ConfigError):
                            await self.login()
                except BROKEN as error:
                    self.trouble = f"{type(error).__name__}: {error}"
                logger.warning("the API server is not to be followed", extra={"why": self.trouble})
                await asyncio.sleep(pause * random.uniform(0.8, 1.2))
                pause = min(pause * 2, MAX_PAUSE)

    async def _list(self, api: DynamicClient) -> str:
        pods: dict[str, Pod] = {}
        token = ""
        while True:
            query = {"limit": str(PAGE), **({"continue": token} if token else {})}
            async with await self._get(api, query, LIST_TIMEOUT) as response:
                page = msgspec.json.decode(await response.read(), type=_PodList)
            pods.update((pod.metadata.uid, pod) for pod in page.items)
            token = page.metadata.continue_
            if not token:
                break
        self.pods = pods
        self._changed()
        return page.metadata.resource_version

    async def _follow(self, api: DynamicClient, version: str) -> None:
        """Watch from `version`; one that ends, or falls silent, goes on from the last one seen."""
        while True:
            query = {
                "watch": "1",
                "allowWatchBookmarks": "true",
                "resourceVersion": version,
                "timeoutSeconds": str(WATCH_SECONDS),
            }
            began = asyncio.get_running_loop().time()
            async with asyncio.timeout(LIST_TIMEOUT.total):  # it answers before it has news
                response = await self._get(api, query, WATCH_TIMEOUT)
            async with response:
                try:
                    async for line in response.content:
                        version = self._apply(line)
                except SILENT:
                    logger.warning("the watch is silent: going on from where it was")
            if asyncio.get_running_loop().time() - began < 1:
                await asyncio.sleep(
                    random.uniform(0.1, 0.3)
                )  # a server that ends every watch at once

    async def _get(
        self, api: DynamicClient, query: dict[str, str], within: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        try:
            response: aiohttp.ClientResponse = await api.request(
                "GET",
                self._path,
                serialize=False,
                label_selector=self._selector,
                query_params=list(query.items()),
                _request_timeout=within,
            )
        except DynamicApiError as error:
            message = f"the API server answers {error.status}: {(error.body or '')[:300]}"
            raise KubeError(message, answered=error.status) from error
        return response

    def _apply(self, line: bytes) -> str:
        event = msgspec.json.decode(line, type=_Event)
        if event.type == "ERROR":
            status = msgspec.json.decode(event.object, type=_Status)
            raise KubeError(f"watch: {status.message or status.code}", answered=status.code)
        if event.type == "BOOKMARK":
            return msgspec.json.decode(event.object, type=_Bookmark).metadata.resource_version
        pod = msgspec.json.decode(event.object, type=Pod)
        if event.type == "DELETED":
            self.pods.pop(pod.metadata.uid, None)
        else:
            self.pods[pod.metadata.uid] = pod
        self._changed()
        return pod.metadata.resource_version
