"""Keeps the fleet like the cluster: by watching Pods, or from a list given by hand."""

import asyncio
import json
import logging
from collections.abc import Coroutine
from contextlib import suppress
from urllib.parse import urlsplit

from pds_engine.errors import ConfigError
from pds_engine.router.backends import Backend, Fleet, Found
from pds_engine.router.config import RouterConfig
from pds_engine.router.health import Health
from pds_engine.router.kube import PodWatch
from pds_engine.router.pods import LABEL, GroupKey, Pod, ended_groups, found, group_of
from pds_engine.router.signed import ask
from pds_engine.router.upstream import BackendLost

logger = logging.getLogger(__name__)
GONE = "/pds/peers/gone"
GONE_TRIES = 5
GONE_KEPT = 1000


def given(urls: tuple[str, ...]) -> list[Found]:
    """Backends named by hand.

    Raises:
        ConfigError: one is not http://host:port.
    """
    all_found = []
    for url in urls:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError:
            host, port = None, 0
        if parts.scheme != "http" or not host or parts.path not in ("", "/"):
            raise ConfigError(f"backends: {url!r} is not http://host:port")
        name = f"{host}:{port}"
        all_found.append(Found(key=name, pod=name, group="local", host=host, port=port))
    return all_found


class Discovery:
    """Runs until closed."""

    def __init__(self, config: RouterConfig, fleet: Fleet) -> None:
        self._config = config
        self._fleet = fleet
        self._health = Health(fleet, config.health)
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: PodWatch | None = None
        self._incarnations: dict[GroupKey, set[str]] = {}
        self._reported_gone: dict[str, None] = {}
        """Incarnations reported as gone, oldest first: a Failed pod is listed for long."""

    @property
    def trouble(self) -> str:
        """Why what it knows may be out of date; "" when it is not."""
        return self._watch.trouble if self._watch else ""

    async def start(self) -> None:
        """Begin to look for backends.

        Raises:
            ConfigError: there is nowhere to look.
        """
        if self._config.backends:
            self._sync(given(self._config.backends))
            return
        name = self._config.pdserving
        selector = f"{LABEL}name={name},{LABEL}role in (prefill,decode,unified)"
        self._watch = PodWatch(
            self._config.kubernetes, self._config.namespace, selector, self._pods_changed
        )
        await self._watch.login()
        self._spawn(self._watch.run())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._health.close()

    def _sync(self, all_found: list[Found]) -> None:
        new, gone = self._fleet.sync(all_found)
        for backend in new:
            logger.info("found a backend", extra={"backend": backend.found.pod})
            self._health.watch(backend)
        for backend in gone:
            logger.info("a backend is gone", extra={"backend": backend.found.pod})
            self._health.forget(backend)

    def _pods_changed(self) -> None:
        if self._watch is None:
            return
        pods = list(self._watch.pods.values())
        ended = ended_groups(pods)
        self._remember(pods)
        self._sync(found(pods))
        alive = {group_of(pod) for pod in pods} - ended
        for group in [group for group in self._incarnations if group not in alive]:
            for incarnation in sorted(self._incarnations.pop(group)):
                if incarnation not in self._reported_gone:
                    self._report_gone(incarnation)
                self._reported_gone[incarnation] = None
        while len(self._reported_gone) > GONE_KEPT:
            del self._reported_gone[next(iter(self._reported_gone))]

    def _remember(self, pods: list[Pod]) -> None:
        """Peers know each group by its leader's UID, and by the incarnation that it reports."""
        for pod in pods:
            if pod.leads:
                self._incarnations.setdefault(group_of(pod), set()).add(pod.metadata.uid)
        for backend in self._fleet:
            if backend.state and backend.state.incarnation:
                for names in self._incarnations.values():
                    if backend.found.key in names:
                        names.add(backend.state.incarnation)

    def _report_gone(self, incarnation: str) -> None:
        """Decode groups may free pages that this incarnation could have written (hand-over.md)."""
        for backend in self._fleet:
            if backend.state and backend.state.role == "decode" and backend.key is not None:
                self._spawn(self._post_gone(backend, incarnation, backend.key))

    async def _post_gone(self, backend: Backend, incarnation: str, key: bytes) -> None:
        body = json.dumps({"incarnation": incarnation}).encode()
        for again in range(GONE_TRIES):
            with suppress(BackendLost, TimeoutError):
                async with asyncio.timeout(self._config.health.timeout):
                    status, _ = await ask(backend, key, "POST", GONE, body)
                if status < 300:
                    return
            await asyncio.sleep(0.5 * 2**again)
        logger.warning(
            "could not report to a decode group that a peer is gone",
            extra={"backend": backend.found.pod, "incarnation": incarnation},
        )

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
