"""The groups that the router knows: their addresses, their states, and the requests open there."""

import asyncio
import random
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Annotated

import msgspec

from pds_engine.messages import Role
from pds_engine.router import circuit
from pds_engine.router.circuit import Circuit, CircuitLimits
from pds_engine.router.config import RouterConfig
from pds_engine.router.keyring import Keyring
from pds_engine.router.policy import Ask, Candidate, Pick, pick, shortage
from pds_engine.router.upstream import Upstream

Text = Annotated[str, msgspec.Meta(max_length=1024)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
Tokens = Annotated[int, msgspec.Meta(ge=1, le=1 << 31)]


class GroupState(msgspec.Struct, frozen=True, kw_only=True):
    """What the router reads of `/pds/state`; it ignores everything else there."""

    role: Role
    kv_fingerprint: Text | None = ""
    protocol: Annotated[int, msgspec.Meta(ge=0, le=1 << 31)] = 1
    """Version of the messages between groups. Engines of the release before report none."""
    key_id: Text | None = ""
    """Id of the control key that it holds."""
    revision: Text | None = ""
    incarnation: Text | None = ""
    control: Text | None = ""
    """host:port of the group's scheduler."""
    group: Text | None = ""
    ready: bool = True
    reason: str | None = ""
    """Why it is not ready."""
    draining: bool = False
    max_model_len: Tokens | None = None
    model_digest: Text | None = ""
    startup: Annotated[dict[Text, Seconds], msgspec.Meta(max_length=32)] | None = None
    """Seconds of each phase of its start. Engines of the release before report none."""

    def goes_on_with(self, other: "GroupState") -> bool:
        """Whether it computes what `other` does, so that it can go on with a stream of that group.

        KV is computed again: its format does not matter, where the model is known.
        """
        if other.model_digest:
            return self.model_digest == other.model_digest
        return self.kv_fingerprint == other.kv_fingerprint


@dataclass(frozen=True, slots=True)
class Found:
    """A group as discovery sees it. `key` is its leader pod's UID, or its address when given."""

    key: str
    pod: str
    group: str
    host: str
    port: int
    ready: bool = True
    deleting: bool = False
    draining: bool = False
    """By label: the operator is about to delete it."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass(slots=True)
class Backend:
    """One group. Changed by discovery, its poller and the relay, all on the one event loop."""

    found: Found
    upstream: Upstream
    keys: Keyring
    state: GroupState | None = None
    trouble: str = "not asked yet"
    """Why the last poll of /pds/state failed; "" when it did not."""
    missed: int = 0
    answered_at: float = 0.0
    clock: float = 0.0
    """Seconds that its clock is ahead of ours, where it refuses what is signed by ours."""
    suspected: bool = False
    """A request failed by its fault, and it has not answered a poll since: others go first."""
    circuit: Circuit = field(default_factory=Circuit)
    lives: bool = False
    """Its last failure was an answer of its own (500): it runs, and may serve other requests."""
    in_flight: int = 0
    outstanding: int = 0
    requests: int = 0
    failures: int = 0

    @property
    def group(self) -> str:
        return (self.state and self.state.group) or self.found.group

    @property
    def kv(self) -> str:
        return (self.state and self.state.kv_fingerprint) or ""

    @property
    def key_id(self) -> str:
        """Id of the control key that it holds."""
        return self.keys.name((self.state and self.state.key_id) or "")

    @property
    def key(self) -> bytes | None:
        """Signs what the router sends to it; None: the router holds no key for it."""
        return self.keys.of(self.key_id)

    def reason(self, now: float, misses: int) -> str:
        """Why no request is sent there; "" when it is routable."""
        if unready := self.unready(misses):
            return unready
        if self.circuit.phase(now) == "open":
            return f"circuit open after {self.circuit.failures} failures in a row"
        return ""

    def unready(self, misses: int) -> str:
        """Why it can serve no request, apart from its circuit; "" when it can."""
        if self.found.deleting:
            return "a pod of the group is being deleted"
        if self.found.draining:
            return "draining, says its label"
        if not self.found.ready:
            return "the leader's containers are not ready"
        if self.state is None or self.missed >= misses:
            return f"/pds/state: {self.trouble}"
        if self.state.draining:
            return "draining"
        if not self.state.ready:
            return f"not ready: {self.state.reason}"
        if not self.state.kv_fingerprint:
            return "its ranks have not joined yet"
        if self.keys and self.key is None:
            return f"its control key {self.key_id} has not come to this router yet"
        return ""


class Fleet:
    """All backends, and the choice among them."""

    def __init__(self, config: RouterConfig, keys: Keyring | None = None) -> None:
        self._config = config
        self.keys = Keyring() if keys is None else keys
        self._backends: dict[str, Backend] = {}
        self._turn = random.Random(config.seed).getrandbits(16)
        self.limits = CircuitLimits(
            config.health.open_after, config.health.open_seconds, config.health.open_max
        )
        self.synced = False
        """Discovery has reported all that it knows at least once."""
        self._change = asyncio.Event()

    def __iter__(self) -> Iterator[Backend]:
        return iter(self._backends.values())

    def __getitem__(self, key: str) -> Backend:
        return self._backends[key]

    def key_ids(self) -> set[str]:
        """Ids of the control keys that its groups hold."""
        return {backend.key_id for backend in self}

    @property
    def longest(self) -> int | None:
        """The tokens that the longest context of any group holds; None: no group has said yet."""
        return max((b.state.max_model_len or 0 for b in self if b.state), default=0) or None

    def sync(self, found: Iterable[Found]) -> tuple[list[Backend], list[Backend]]:
        """Adopt what discovery sees. Returns the new backends and the gone ones."""
        now = {each.key: each for each in found}
        gone = [self._backends.pop(key) for key in list(self._backends) if key not in now]
        new = []
        for key, each in now.items():
            if key in self._backends:
                self._backends[key].found = each
            else:
                upstream = Upstream(
                    each.host, each.port, connect_timeout=self._config.connect_timeout
                )
                new.append(self._backends.setdefault(key, Backend(each, upstream, self.keys)))
        self.synced = True
        self.notify()
        return new, gone

    def reason(self, backend: Backend) -> str:
        return backend.reason(monotonic(), self._config.health.misses)

    def notify(self) -> None:
        """Something changed in what can be routed to: wake those who wait for it."""
        self._change.set()
        self._change = asyncio.Event()

    async def wait_for_change(self, seconds: float) -> None:
        """Wait until something changes, `seconds` at the most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._change.wait()

    def routable(
        self,
        excluded: Iterable[str] = (),
        like: GroupState | None = None,
        *,
        last_resort: bool = False,
    ) -> list[Candidate]:
        """The policy's candidates; with `like`, those that can go on with a stream of that group.

        last_resort: also groups that live and have an open circuit.
        """
        now, misses = monotonic(), self._config.health.misses
        left_out = set(excluded)
        return [
            Candidate(key, b.state.role, b.kv, b.outstanding, b.state.protocol, b.key_id)
            for key, b in self._backends.items()
            if b.state is not None
            and key not in left_out
            and (like is None or b.state.goes_on_with(like))
            and not b.unready(misses)
            and (b.circuit.admits(now) or (last_resort and b.lives))
        ]

    def pick(
        self, affinity: bytes, excluded: Iterable[str] = (), like: GroupState | None = None
    ) -> Pick | None:
        """The groups for the next request, or for one that `like` began.

        A suspected group may be dead already, and a dead one has the least load of all: a new
        request goes there if there is no other, and a stream waits until it has answered. Where
        nothing but open circuits keeps it out, groups that live are asked: one client's requests
        may have opened them.
        """
        self._turn += 1
        ask = Ask(self._config.policy, self._turn, self._config.seed, affinity)
        suspects = [key for key, backend in self._backends.items() if backend.suspected]
        found = pick(self.routable([*excluded, *suspects], like), ask)
        if found is not None or like is not None:
            return found
        left_out = list(excluded)
        return pick(self.routable(left_out), ask) or pick(
            self.routable(left_out, last_resort=True), ask
        )

    def shortage(self) -> str:
        """Why nothing can be picked, in the words of a 503."""
        why = shortage(self.routable())
        reasons = sorted(
            f"{b.found.pod}: {reason}" for b in self if (reason := self.reason(b)) and b.found.ready
        )
        return f"{why} ({'; '.join(reasons[:5])})" if reasons else why

    def start(self, backend: Backend, tokens: int) -> None:
        """A request is being sent there."""
        backend.circuit = circuit.tried(backend.circuit, monotonic())
        backend.in_flight += 1
        backend.requests += 1
        backend.outstanding += tokens

    def end(self, backend: Backend, tokens: int, healthy: bool | None, lives: bool = False) -> None:
        """It is over.

        healthy: True answered, False failed by its fault, None says nothing.
        lives: the failure was an answer of the group's own.
        """
        backend.in_flight -= 1
        backend.outstanding -= tokens
        if healthy:
            backend.circuit = circuit.succeeded(backend.circuit)
        elif healthy is None:
            backend.circuit = circuit.spared(backend.circuit)
        else:
            backend.failures += 1
            backend.lives = lives
            backend.suspected = True
            backend.circuit = circuit.failed(backend.circuit, monotonic(), self.limits)
