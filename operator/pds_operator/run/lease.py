"""Who of several replicas writes: a Lease, taken and renewed as client-go does."""

import asyncio
import datetime
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from typing import Any

from pds_operator import errors
from pds_operator.run.api import TRANSIENT, Api
from pds_operator.settings import Settings

Object = dict[str, Any]

log = logging.getLogger("pds_operator.lease")


class Lease:
    """Held or not, by the monotonic clock: never by comparing clocks of two machines."""

    def __init__(
        self,
        api: Api,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._settings = settings
        self._clock = clock
        self._wall = wall
        self._renewed: float | None = None
        self._seen: tuple[str, str] | None = None
        self._seen_at = 0.0
        self.identity = f"{socket.gethostname()}_{os.getpid()}_{secrets.token_hex(4)}"

    @property
    def held(self) -> bool:
        """Whether the lease was renewed within its term: checked before every write."""
        if not self._settings.lease.enabled:
            return True
        term = self._settings.lease.seconds
        return self._renewed is not None and self._clock() - self._renewed < term * 0.8

    async def run(self, gained: Callable[[], None]) -> None:
        """Take and renew it for ever; `gained` is called whenever it becomes ours."""
        period = self._settings.lease.seconds / 5
        while self._settings.lease.enabled:
            before, wait = self.held, period
            try:
                await self.once()
            except errors.ApiError as error:
                log.warning("lease: %s", error.message)
                wait = max(period, error.after)
            except TRANSIENT as error:
                log.warning("lease: %s", error or type(error).__name__)
            if self.held and not before:
                log.info("this replica leads")
                gained()
            elif before and not self.held:
                log.warning("this replica no longer leads")
            await asyncio.sleep(wait)

    async def release(self) -> None:
        """Give it back, so that the next one need not wait for the term to end."""
        if not self._settings.lease.enabled or not self.held:
            return
        self._renewed = None
        try:
            obj = await self._api.get("Lease", self._settings.namespace, self._settings.lease.name)
            if obj["spec"].get("holderIdentity") == self.identity:
                obj["spec"]["holderIdentity"] = ""
                obj["spec"]["renewTime"] = _micro(self._wall())
                await self._api.replace({**obj, "kind": "Lease"})
        except (errors.ApiError, *TRANSIENT) as error:
            log.warning("the lease was not given back: %s", error)

    async def once(self) -> None:
        """Take it when it is free, renew it when it is ours. Raises ApiError."""
        asked = self._clock()
        place = self._settings.namespace, self._settings.lease.name
        try:
            obj = await self._api.get("Lease", *place)
        except errors.Missing:
            await self._api.create(self._fresh())
            self._renewed = asked
            return
        spec = obj["spec"]
        holder, renewed = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
        if holder != self.identity:
            if (holder, renewed) != self._seen:
                self._seen, self._seen_at = (holder, renewed), asked
            term = float(spec.get("leaseDurationSeconds") or self._settings.lease.seconds)
            if holder and asked - self._seen_at < term:
                self._renewed = None
                return
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
            spec["acquireTime"] = _micro(self._wall())
        spec |= {"holderIdentity": self.identity, "renewTime": _micro(self._wall())}
        spec["leaseDurationSeconds"] = round(self._settings.lease.seconds)
        try:
            await self._api.replace({**obj, "kind": "Lease"})
            self._renewed = asked
        except errors.Conflict:
            self._renewed = None

    def _fresh(self) -> Object:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {
                "name": self._settings.lease.name,
                "namespace": self._settings.namespace,
            },
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": round(self._settings.lease.seconds),
                "acquireTime": _micro(self._wall()),
                "renewTime": _micro(self._wall()),
                "leaseTransitions": 0,
            },
        }


def _micro(moment: float) -> str:
    found = datetime.datetime.fromtimestamp(moment, datetime.UTC)
    return found.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
