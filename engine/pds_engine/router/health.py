"""Polls /pds/state of each backend, and gives up the requests of one that is silent."""

import asyncio
import logging
import random
from time import monotonic

import msgspec

from pds_engine.router.backends import Backend, Fleet, GroupState
from pds_engine.router.circuit import Circuit
from pds_engine.router.config import HealthConfig
from pds_engine.router.signed import ask
from pds_engine.router.upstream import BackendLost

logger = logging.getLogger(__name__)
SIGNATURE_REFUSED = "refuses the router's signature: their control keys differ, or their clocks"
_decoder = msgspec.json.Decoder(GroupState)


class Health:
    """One task per backend; started and stopped by discovery."""

    def __init__(self, fleet: Fleet, config: HealthConfig) -> None:
        self._fleet = fleet
        self._config = config
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def watch(self, backend: Backend) -> None:
        """Begin to poll it."""
        task = asyncio.get_running_loop().create_task(self._poll_forever(backend))
        self._tasks[backend.found.key] = task

    def forget(self, backend: Backend) -> None:
        """It is gone: end its polling and every exchange with it."""
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

    async def _poll_forever(self, backend: Backend) -> None:
        backend.answered_at = monotonic()
        while True:
            before = self._fleet.reason(backend), backend.suspected
            await poll(backend, self._config)
            if (self._fleet.reason(backend), backend.suspected) != before:
                self._fleet.notify()
            silent = monotonic() - backend.answered_at
            if silent > self._config.lost_after and backend.in_flight:
                logger.warning(
                    "giving up the requests of a silent backend",
                    extra={"backend": backend.found.pod, "silent_seconds": round(silent, 1)},
                )
                backend.upstream.fail_all(f"silent for {silent:.0f} s")
            pause = self._config.interval if backend.state else self._config.start_interval
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))


async def poll(backend: Backend, config: HealthConfig) -> None:
    """Ask a backend how it is, and note the answer or the trouble."""
    try:
        async with asyncio.timeout(config.timeout):
            state = await _read_state(backend, config)
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


async def _read_state(backend: Backend, config: HealthConfig) -> GroupState:
    """Its state, by a request that its own key signs: a backend that would refuse ours says so.

    Anybody may learn which key it has. That is asked first, and again after a trouble, since the
    backend may be another process by then.
    """
    key = None if backend.trouble else backend.key
    if key is None:
        state = await _get_state(backend, None)
        key = backend.keys.of(backend.keys.name(state.key_id or ""))
        if key is None:  # `unready` says so, where the router has others
            return state
    try:
        return await _get_state(backend, key)
    except _SignatureRefused as error:
        backend.missed = config.misses  # it would refuse each request so
        raise BackendLost(SIGNATURE_REFUSED) from error


class _SignatureRefused(BackendLost):
    """It answered 403."""


async def _get_state(backend: Backend, key: bytes | None) -> GroupState:
    status, body = await ask(backend, key, "GET", "/pds/state")
    if status != 200:
        raise (_SignatureRefused if status == 403 else BackendLost)(f"answered {status}")
    return _decoder.decode(body)
