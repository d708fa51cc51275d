"""A whole group of real processes: its schedulers and workers, driven as an API server would."""

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import zmq
from forked import Forked, child
from free import free_port
from msgspec.structs import replace
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.messages import (
    AnyMessage,
    Bound,
    Failed,
    Hello,
    Offered,
    Room,
    Source,
    State,
    Submit,
    Token,
    Welcome,
    Withdrawn,
)
from pds_engine.server.merged import merged
from pds_engine.wire import Link

Start = Callable[[Path, str, Path], Forked]


class Group:
    """Schedulers and workers as launch starts them, and links in the API server's place.

    Its standard error goes to the file `log`. Requests are bound to dp ranks by whoever sends them.
    """

    def __init__(
        self, config: EngineConfig, keys: Keys, folder: Path, name: str, start: Start = child
    ) -> None:
        self.name, self.folder, self.config = name, folder, config
        self.ranks, self.dp = config.parallelism.ranks, config.parallelism.dp
        self.ports = [free_port() for _ in range(self.dp)]
        addresses = [f"tcp://127.0.0.1:{port}" for port in self.ports]
        keys.write(folder)
        pod = config.pod.model_copy(update={"group": name})
        http = config.http.model_copy(update={"rendezvous_port": free_port()})
        (folder / "config.json").write_text(
            config.model_copy(update={"pod": pod, "http": http}).model_dump_json()
        )
        launch = {"incarnation": name, "binds": addresses, "schedulers": addresses}
        (folder / "launch.json").write_text(json.dumps(launch))
        self.log = folder / "log"
        first = [f"scheduler-{rank}" for rank in range(self.dp)] if self.dp > 1 else ["scheduler"]
        self.kinds = [*first, *(f"worker-{rank}" for rank in range(self.ranks))]
        started = [start(self.log, kind, folder) for kind in self.kinds]
        self.schedulers, self.workers = started[: self.dp], started[self.dp :]
        self.context = zmq.Context()
        self.links = [Link(self.context, address, keys) for address in addresses]
        self._poller = zmq.Poller()
        for link in self.links:
            self._poller.register(link.socket, zmq.POLLIN)
            link.send(Hello(peer="server", group=name, incarnation=name, rank=0))
        self.state = State()
        """The last that it has reported as a whole."""
        self._received: deque[AnyMessage] = deque()
        self._states: list[State | None] = [None] * self.dp
        self._unoffered: dict[str, tuple[Submit, int]] = {}
        self._offered: set[str] = set()

    @property
    def scheduler(self) -> Forked:
        """Of dp rank 0."""
        return self.schedulers[0]

    @property
    def link(self) -> Link:
        """To dp rank 0."""
        return self.links[0]

    @property
    def port(self) -> int:
        """Of dp rank 0, which other groups know."""
        return self.ports[0]

    @property
    def source(self) -> Source:
        """What a decode group is told of this one."""
        return Source(address=f"127.0.0.1:{self.port}", group=self.name)

    @property
    def reports(self) -> list[State]:
        """The dp ranks' last states, since their last tokens."""
        return [state for state in self._states if state is not None]

    def await_ready(self) -> None:
        for _ in self.links:
            assert isinstance(self.receive(), Welcome)
        self.await_state(lambda state: state.ranks_ready == self.ranks)

    def send(self, submit: Submit, rank: int = 0) -> None:
        """To a dp rank; of a prefill group of several, once dp rank 0 has the request's offer."""
        if self.dp == 1 or self.config.role != "prefill":
            self.links[rank].send(submit)
            return
        self._unoffered[submit.request_id] = submit, rank
        self._bind()

    def receive(self, seconds: float = 60.0) -> AnyMessage:
        """What an API server would hear, but for what it needs to bind requests to dp ranks."""
        until = time.monotonic() + seconds
        while not self._received:
            left = until - time.monotonic()
            if left < 0 or not (found := self._poller.poll(1000 * left)):
                raise TimeoutError(f"{self.name} said nothing: {self.log.read_text()}")
            sockets = {socket for socket, _ in found}
            for rank, link in enumerate(self.links):
                while link.socket in sockets and (message := link.receive()) is not None:
                    self._hear(rank, message)
        return self._received.popleft()

    def await_state(self, such: Callable[[State], bool]) -> State:
        while True:
            message = self.receive()
            if isinstance(message, State) and such(message):
                return message

    def idle(self) -> State:
        """The state once no request is left, nor its hand-over, which ends after it."""
        return self.await_state(
            lambda state: state.in_flight == 0 and state.transfers_in_flight == 0
        )

    def collect(self, *submits: Submit, ranks: Sequence[int] = ()) -> dict[str, list[Token]]:
        """Send them all at once, and receive every request's tokens up to its end.

        Args:
            ranks: the dp rank of each; none: dp rank 0's.
        """
        for at, submit in enumerate(submits):
            self.send(submit, ranks[at] if ranks else 0)
        return self.collected(*(submit.request_id for submit in submits))

    def collected(self, *names: str) -> dict[str, list[Token]]:
        """Every token of requests that were sent."""
        found: dict[str, list[Token]] = {name: [] for name in names}
        open_ = set(found)
        while open_:
            message = self.receive()
            if isinstance(message, State):
                continue
            assert isinstance(message, Token), message
            assert message.index == len(found[message.request_id])
            found[message.request_id].append(message)
            if message.finish_reason is not None:
                open_.discard(message.request_id)
        return found

    def firsts(self, *names: str) -> dict[str, int]:
        """The first token of each of these requests."""
        found: dict[str, int] = {}
        while set(names) - set(found):
            message = self.receive()
            assert not isinstance(message, Failed), message
            if isinstance(message, Token) and message.index == 0:
                found[message.request_id] = message.token
        return found

    def tokens(self, request_id: str, count: int) -> list[int]:
        return [token.token for token in self.answer(request_id, count)]

    def answer(self, request_id: str, count: int) -> list[Token]:
        """The first `count` tokens of a request; others' are passed over."""
        found: list[Token] = []
        while len(found) < count:
            message = self.receive()
            if isinstance(message, State):
                continue
            assert isinstance(message, Token), message
            if message.request_id == request_id:
                found.append(message)
        assert [token.index for token in found] == list(range(count))
        return found

    def ends(self, seconds: float) -> str:
        """Wait until the scheduler has given the group up; what its processes said."""
        assert self.scheduler.wait(seconds) == 1
        return self.log.read_text()

    def close(self) -> None:
        for link in self.links:
            link.close()
        self.context.term()
        for process in (*self.workers, *self.schedulers):
            process.kill()
            process.wait()

    # ---- steps of the above ------------------------------------------------------------------

    def _hear(self, rank: int, message: AnyMessage) -> None:
        match message:
            case Room() | Withdrawn():
                pass
            case Offered():
                self._offered.add(message.request_id)
                self._bind()
            case State():
                self._states[rank] = message
                if (whole := self._whole()) is not None:
                    self.state = whole
                    self._received.append(whole)
            case _:
                if isinstance(message, Token | Failed):
                    self._states[rank] = None  # it is older than this
                self._received.append(message)

    def _whole(self) -> State | None:
        """The group's state, if all dp ranks have reported since their last tokens and have done as
        much as each other: one that has more to say speaks again within a moment."""
        known = self.reports
        if len(known) < self.dp or len({(s.passes, s.steps_done) for s in known}) > 1:
            return None
        return merged(known)

    def _bind(self) -> None:
        """Requests with their offers, to their dp ranks."""
        for name in self._offered & set(self._unoffered):
            submit, rank = self._unoffered.pop(name)
            self._offered.discard(name)
            if rank:
                self.link.send(Bound(request_id=name, dp_rank=rank))
            self.links[rank].send(submit)


def handed_over(
    prefill: Group,
    decode: Group,
    asked: Sequence[Submit],
    prefill_ranks: Sequence[int] = (),
    decode_ranks: Sequence[int] = (),
) -> dict[str, list[Token]]:
    """Answers of prompts that one group computes, and the other one goes on with.

    Args:
        prefill_ranks, decode_ranks: the dp rank of each request; none: dp rank 0's.
    """
    for at, each in enumerate(asked):
        p, d = prefill_ranks[at] if prefill_ranks else 0, decode_ranks[at] if decode_ranks else 0
        prefill.send(replace(each, role_hint="prefill"), p)
        decode.send(replace(each, role_hint="decode", source=prefill.source), d)
    names = [each.request_id for each in asked]
    firsts = prefill.firsts(*names)
    found = decode.collected(*names)
    assert firsts == {request: sent[0].token for request, sent in found.items()}
    return found
