"""The scheduler's process: sockets and the clock around the core, which decides everything.

`run` blocks until the group has failed; it then raises GroupError, and the group restarts as one.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing
from itertools import groupby

import zmq
from msgspec.structs import replace

from pds_engine.config import EngineConfig
from pds_engine.errors import ProtocolError, RankLost, StageTimeout
from pds_engine.keys import Keys
from pds_engine.messages import (
    PROTOCOL,
    Assemble,
    Gathered,
    Hello,
    Message,
    Room,
    State,
    Wake,
    Welcome,
)
from pds_engine.parallel.sync import sync_mode
from pds_engine.scheduler.dp.delayer import Delayer
from pds_engine.scheduler.members import KINDS, MAY_SEND, Member, ServedGroup
from pds_engine.scheduler.party import REPLICAS, SERVERS, SYNC, WORKERS, Out, Party
from pds_engine.scheduler.peers import Peers
from pds_engine.scheduler.replicas import ALONE, DpPlace, ReplicaLinks
from pds_engine.scheduler.scheduler import Scheduler
from pds_engine.scheduler.settings import Settings
from pds_engine.wire import Authority, Hub, PeerUnknown, Unreadable

log = logging.getLogger(__name__)

TICK = 0.1
"""Seconds between looks at leases and deadlines."""
PROBE = 1.0
"""Seconds between looks whether every connection is still there."""
STATE = 0.05
"""Seconds between two States, at least."""
BATCH = 1024
"""Messages received before the next plan, at most."""


def run(
    config: EngineConfig,
    keys: Keys,
    bind: str,
    incarnation: str,
    place: DpPlace = ALONE,
    window: int | None = None,
) -> None:
    """Serve as the scheduler of one dp rank of this group at `bind`, such as tcp://0.0.0.0:8001.

    Args:
        window: the model's sliding window (Settings.window).

    Raises:
        ConfigError: bounds that no prompt could live with.
        PortTaken: another process has the port of `bind`.
        GroupError: a worker failed or was lost, or a message of this group's own was wrong.
    """
    settings = Settings.of(config, window)
    context = zmq.Context()
    authority = Authority(context, keys)
    try:
        hub = Hub(context, bind, keys)
        log.info("scheduler bound", extra={"address": bind, "role": settings.role})
        if settings.parallelism.dp > 1:
            gather, delayer = sync_mode(settings), Delayer.of(settings)
            log.info(
                "dp rank %d of %d: rows are gathered on %s, the delayer is %s",
                place.dp_rank,
                settings.parallelism.dp,
                gather,
                "off" if delayer is None else "on",
            )
        # Rank 0 is in this pod, whose address every rank reaches.
        rendezvous = f"{config.pod.ip}:{config.http.rendezvous_port}"
        core = Scheduler(settings, incarnation, place.dp_rank)
        group = ServedGroup(config.pod.group, incarnation, rendezvous)
        loop = SchedulerLoop(context, hub, keys, core, group, place)
        with closing(loop):
            loop.serve()
    finally:
        authority.close()
        context.term()


class SchedulerLoop:
    """Everything between the core and the sockets."""

    def __init__(
        self,
        context: zmq.Context,  # type: ignore[type-arg]
        hub: Hub,
        keys: Keys,
        core: Scheduler,
        group: ServedGroup,
        place: DpPlace,
    ) -> None:
        self._core = core
        self._hub = hub
        self._group = group
        self._members: dict[bytes, Member] = {}
        self._outgoing: deque[Out] = deque()
        self._poller = zmq.Poller()
        self._poller.register(hub.socket, zmq.POLLIN)
        hello = Hello(peer="scheduler", group=group.name, incarnation=group.incarnation, rank=-1)
        self._peers = Peers(context, self._poller, keys, hello, core.settings.kv.lease_seconds)
        ours = replace(hello, peer="replica", rank=place.dp_rank)
        self._replicas = ReplicaLinks(context, self._poller, keys, ours, place)
        self._now = _steady_clock()
        self._next = dict.fromkeys((TICK, PROBE, STATE), 0.0)
        self._state: State | None = None
        self._shared = core.settings.parallelism.dp > 1
        self._room: Room | None = None
        self._early: list[Message] = []
        """For the thread that gathers, which has not joined yet."""
        self._changed = True

    def serve(self) -> None:
        """Until the group fails."""
        try:
            self._serve()
        except StageTimeout:
            for line in self._core.ranks.dump(self._now()):
                log.error("%s", line)
            raise

    def _serve(self) -> None:
        while True:
            self._poller.poll(self._patience())
            now = self._now()
            self._receive(now)
            if self._due(TICK, now):
                self._queue(self._core.tick(now))
                for address, _ in self._peers.expire(now):
                    self._handle_prefill(address, None, now)
            if self._due(PROBE, now):
                self._probe(now)
            self._queue(self._core.plan(now))
            if self._shared:
                self._offer_room()
            self._flush(now)
            if self._changed and self._due(STATE, now):
                self._report(now)

    def _patience(self) -> int:
        """Milliseconds that the loop waits for a message, at most."""
        rest = self._core.rests_until - self._now()
        patience = STATE if self._changed else TICK
        return max(round(1000 * (min(rest, patience) if rest > 0 else patience)), 1)

    def close(self) -> None:
        self._peers.close()
        self._replicas.close()
        self._hub.close()

    # ---- in ------------------------------------------------------------------------------------

    def _receive(self, now: float) -> None:
        for _ in range(BATCH):
            try:
                got = self._hub.receive()
            except Unreadable as error:
                self._mistrust(error.identity, error, now)
                continue
            if got is None:
                break
            self._changed = True
            self._handle(*got, now)
        for address, message in self._peers.receive():
            self._changed = True
            self._handle_prefill(address, message, now)
        for message in self._replicas.receive():
            party = SYNC if isinstance(message, Gathered) else REPLICAS
            if isinstance(message, MAY_SEND[party.kind]):
                self._queue(self._core.handle(party, message, now))

    def _handle(self, identity: bytes, message: Message, now: float) -> None:
        member = self._members.get(identity)
        if isinstance(message, Hello) and member is None:
            self._hello(identity, message)
        elif member is None:
            log.warning("dropped a stranger's %s", type(message).__name__)
        elif isinstance(message, MAY_SEND[member.party.kind]):
            if isinstance(message, Wake):
                self._pass_on(message, member)
            self._queue(self._core.handle(member.party, message, now))
        else:
            name = type(message).__name__
            self._mistrust(identity, ProtocolError(f"{name} from a {member.party.kind}"), now)

    def _pass_on(self, message: Message, sender: Member) -> None:
        """A dp rank has woken this one, dp rank 0: the others are told too."""
        others = [m for m in self._members.values() if m.party == REPLICAS and m is not sender]
        for member in others:
            self._put(member, [message])

    def _hello(self, identity: bytes, message: Hello) -> None:
        # A pod other than the leader's does not know the incarnation; its group's name, which has
        # the attempt in it, is no other group's.
        group = self._group
        ours = message.group == group.name and message.incarnation in ("", group.incarnation)
        if message.protocol != PROTOCOL or (message.peer != "scheduler" and not ours):
            log.warning(
                "refused a %s of group %s, incarnation %s, protocol %d",
                message.peer,
                message.group,
                message.incarnation,
                message.protocol,
            )
            return
        if message.peer == "worker":
            party = WORKERS
            if self._core.ranks.join(message.rank, message.manifest):
                self._queue([Out(WORKERS, Assemble(rendezvous=group.rendezvous))])
        elif message.peer == "replica":
            party = REPLICAS
        elif message.peer == "sync":
            party, early, self._early = SYNC, self._early, []
            self._queue(Out(SYNC, message) for message in early)
        else:
            party = Party(KINDS[message.peer], identity.hex())
        self._members[identity] = Member(identity, party, message.rank)
        self._state = self._room = None
        peer = "scheduler of dp" if message.peer == "replica" else message.peer
        log.info("%s joined, rank %d", peer, message.rank)
        try:
            self._hub.send(identity, Welcome(incarnation=group.incarnation))
        except PeerUnknown:
            self._gone(identity, self._now())

    def _handle_prefill(self, address: str, message: Message | None, now: float) -> None:
        party = Party("prefill", address)
        if message is None:
            log.warning("lost the prefill scheduler at %s", address)
            self._queue(self._core.lost(party, now))
        elif isinstance(message, MAY_SEND["prefill"]):
            self._queue(self._core.handle(party, message, now))
        else:
            log.warning("dropped %s from %s", type(message).__name__, address)

    def _mistrust(self, identity: bytes, error: ProtocolError, now: float) -> None:
        """Our own group's mistakes are fatal; another's connection is dropped."""
        member = self._members.get(identity)
        if member is not None and member.party.kind != "decode":
            raise error
        log.warning("dropped a connection: %s", error)
        self._hub.forget(identity)
        self._gone(identity, now)

    def _gone(self, identity: bytes, now: float) -> None:
        member = self._members.pop(identity, None)
        if member is None:
            return
        if member.party == WORKERS:
            name = self._core.ranks.names([member.rank])
            raise RankLost(f"{name} has ended, or was silent for too long: its connection is gone")
        if member.party == REPLICAS:
            raise RankLost(f"the scheduler of dp rank {member.rank} has ended")
        if member.party == SYNC:
            name = self._core.ranks.names([member.rank])
            raise RankLost(f"{name} gathers no rows any more: its connection is gone")
        log.warning("lost a %s", member.party.kind)
        self._changed = True
        self._queue(self._core.lost(member.party, now))

    def _probe(self, now: float) -> None:
        for identity in list(self._members):
            try:
                self._hub.probe(identity)
            except PeerUnknown:
                self._gone(identity, now)

    # ---- out -----------------------------------------------------------------------------------

    def _queue(self, out: Iterable[Out]) -> None:
        self._outgoing.extend(out)

    def _flush(self, now: float) -> None:
        """Send all that is due; a lost peer may make more to send."""
        while self._outgoing:
            self._changed = True
            batch = list(self._outgoing)
            self._outgoing.clear()
            for party, group in groupby(batch, key=_addressee):
                self._send(party, [out.message for out in group], now)

    def _send(self, party: Party, messages: list[Message], now: float) -> None:
        if party.kind == "prefill":
            for message in messages:
                try:
                    self._peers.send(party.name, message, now)
                except PeerUnknown as error:
                    log.warning("%s", error)
                    self._queue(self._core.lost(party, now))
            return
        if self._replicas.takes(party, messages):
            return
        members = self._members_of(party)
        for member in members:
            self._put(member, messages)
        if party == SYNC and not members:
            self._early += messages  # its worker is ready, and the thread's own Hello is under way

    def _members_of(self, party: Party) -> list[Member]:
        """The connections of a party; it may be all API servers, or a single dp rank."""
        everyone = self._members.values()
        if party == SERVERS:
            return [m for m in everyone if m.party.kind == "server"]
        if party.kind == "replicas" and party.name:
            return [m for m in everyone if m.party == REPLICAS and m.rank == int(party.name)]
        return [m for m in everyone if m.party == party]

    def _put(self, member: Member, messages: list[Message]) -> None:
        try:
            if member.party.kind == "server":
                self._hub.send(member.identity, *messages)
            else:
                for message in messages:
                    self._hub.send(member.identity, message)
        except PeerUnknown:
            self._gone(member.identity, self._now())

    def _offer_room(self) -> None:
        """Tell the servers what this dp rank could admit, whenever that has changed."""
        if not self._core.ready or not self._replicas_here():
            return
        room = self._core.room()
        if room != self._room:
            self._room = room
            self._queue([Out(SERVERS, room)])

    def _replicas_here(self) -> bool:
        """Whether dp rank 0 can reach all others; they reach it, or have ended."""
        here = sum(member.party == REPLICAS for member in self._members.values())
        return self._core.dp_rank > 0 or here == self._core.settings.parallelism.dp - 1

    def _report(self, now: float) -> None:
        """Send all servers the State if it has changed; a step in flight ages, so it has."""
        state = self._core.state(now)
        self._changed = bool(self._core.steps.in_flight)
        if state == self._state:
            return
        self._state = state
        self._send(SERVERS, [state], now)

    def _due(self, period: float, now: float) -> bool:
        if now < self._next[period]:
            return False
        self._next[period] = now + period
        return True


def _addressee(out: Out) -> Party:
    return out.to


def _steady_clock() -> Callable[[], float]:
    """Seconds since the epoch as of now; goes on evenly when the machine's clock is set."""
    offset = time.time() - time.monotonic()
    return lambda: offset + time.monotonic()
