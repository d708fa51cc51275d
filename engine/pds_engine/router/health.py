"""Looks at each backend's /pds/state, and what follows when one is silent."""

import asyncio
import logging
import random
from time import monotonic

import msgspec

from pds_engine.router.backends import Backend, EngineState, Fleet
from pds_engine.router.circuit import Circuit
from pds_engine.router.config import HealthConfig
from pds_engine.router.signed import ask
from pds_engine.router.upstream import BackendLost

logger = logging.getLogger(__name__)
REFUSED = "refuses the router's signature: their control keys differ, or their clocks"
_decoder = msgspec.json.Decoder(EngineState)


class Health:
    """One task per backend; started and stopped by discovery."""

    def __init__(self, fleet: Fleet, config: HealthConfig) -> None:
        self._fleet = fleet
        self._config = config
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, backend: Backend) -> None:
        """Begin to look at it."""
        task = asyncio.get_running_loop().create_task(self._look_on(backend))
        self._tasks[backend.found.key] = task

    def forget(self, backend: Backend) -> None:
        """It is gone: end the looks and every exchange with it."""
        if task := self._tasks.pop(backend.found.key, None):
            task.cancel()
        backend.upstream.close("its pod is gone")

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for backend in self._fleet:
            backend.upstream.close("the router ends")

    async def _look_on(self, backend: Backend) -> None:
        backend.answered_at = monotonic()
        while True:
            before = self._fleet.reason(backend), backend.suspected
            await look(backend, self._config)
            if (self._fleet.reason(backend), backend.suspected) != before:
                self._fleet.tell()
            silent = monotonic() - backend.answered_at
            if silent > self._config.lost_after and backend.in_flight:
                logger.warning(
                    "giving up the requests of a silent backend",
                    extra={"backend": backend.found.pod, "silent_seconds": round(silent, 1)},
                )
                backend.upstream.fail_all(f"silent for {silent:.0f} s")
            pause = self._config.interval if backend.state else self._config.start_interval
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))


async def look(backend: Backend, config: HealthConfig) -> None:
    """Ask a backend how it is, and note the answer or the trouble."""
    try:
        async with asyncio.timeout(config.timeout):
            state = await _told(backend, config)
    except (BackendLost, msgspec.DecodeError, RecursionError, TimeoutError) as error:
        backend.missed += 1
        backend.trouble = str(error) or f"no answer within {config.timeout} s"
        return
    if backend.state is not None and backend.state.incarnation != state.incarnation:
        backend.circuit = Circuit()  # another process: the old one's failures are not its own
    backend.state = state
    backend.missed = 0
    backend.suspected = False
    backend.trouble = ""
    backend.answered_at = monotonic()


async def _told(backend: Backend, config: HealthConfig) -> EngineState:
    """Its state, asked for by its own key, so that one that would refuse our requests says so.

    Which key it has everybody may know: that is asked first, and again after a trouble, as it may
    be another process since.
    """
    key = None if backend.trouble else backend.key
    if key is None:
        state = await _asked(backend, None)
        key = backend.keys.of(backend.keys.name(state.key_id or ""))
        if key is None:  # `unfit` tells, where the router has others
            return state
    try:
        return await _asked(backend, key)
    except _Refused as error:
        backend.missed = config.misses  # so it would answer each request
        raise BackendLost(REFUSED) from error


class _Refused(BackendLost):
    """It answered 403."""


async def _asked(backend: Backend, key: bytes | None) -> EngineState:
    status, body = await ask(backend, key, "GET", "/pds/state")
    if status != 200:
        raise (_Refused if status == 403 else BackendLost)(f"answered {status}")
    return _decoder.decode(body)
