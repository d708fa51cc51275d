"""One attempt at one pair: the exchanges with its groups, and how far they have come."""

import json
import secrets
from dataclasses import dataclass, field

from pds_engine.errors import (
    DeadlinePassed,
    Drained,
    GroupFailed,
    NotFinite,
    Overloaded,
    Preempted,
    TransferFailed,
    Unavailable,
    WrongClock,
)
from pds_engine.messages import Role
from pds_engine.router.answers import JSON, error_body
from pds_engine.router.backends import Backend, Fleet
from pds_engine.router.call import STREAMED, Call
from pds_engine.router.client import Client
from pds_engine.router.policy import Pick
from pds_engine.router.signed import Signature
from pds_engine.router.upstream import BackendLost, Reply

RETRIED = frozenset({408, 429, 500, 502, 503})
"""Another group may do better than an answer of these. 504 says that the request's time is over."""
NO_ROOM = frozenset({Overloaded.code, Preempted.code})
"""What a group answers that has no room just now, besides turning a request away."""
DIED = "the group has failed"
UNOFFERED = "no decode group has offered pages"
"""Engines of the release before say `unavailable` of work that they had admitted, in messages that
begin so. Ours have codes of their own for that."""
SIGNATURE_REFUSED = frozenset({401, 403})
"""The client's key was good here, and ours was not."""
FAULTS = SIGNATURE_REFUSED | {500, 502}
"""Answers that count against the group's circuit; 429 and 503 only say that it is busy. NotFinite
does not count: else a prompt that no group can answer would close all groups to everybody."""


@dataclass(frozen=True, slots=True)
class AttemptFailure:
    """Why an attempt failed. `blamed` is the backend that the next attempt avoids."""

    status: int
    body: bytes
    blamed: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    reason: str = "failed"
    """lost, drained, preempted or failed: a migration's label in the metrics."""
    died: bool = False
    """The group died or fell silent with the request, and may have died of it."""
    untaken: bool = False
    """No group of the pair began with it: it reached none, or was refused at once."""

    @property
    def retry(self) -> bool:
        return self.status in RETRIED

    @property
    def late(self) -> bool:
        """The request's own time is over, wherever it goes."""
        return self.status == DeadlinePassed.status

    @property
    def preempted(self) -> bool:
        """A decode group had no page left: nobody's fault, and no reason to give up."""
        return self.reason == Preempted.code

    @property
    def turned_away(self) -> bool:
        """A group that drains or is not ready began nothing: asking it was no attempt."""
        code, message = _error(self.body)
        return self._heard and code == Unavailable.code and not message.startswith(UNOFFERED)

    @property
    def busy(self) -> bool:
        """A group is there, and says that it has no room just now."""
        return self.turned_away or (self._heard and _code(self.body) in NO_ROOM)

    @property
    def begun(self) -> bool:
        """A group may have failed of the request itself: another is asked so often and no more."""
        return not (self.untaken or self.busy or self.reason == Drained.code)

    @property
    def _heard(self) -> bool:
        """The answer is the group's own, and no epitaph."""
        return self.reason != "lost" and not self.died


@dataclass(slots=True)
class Side:
    """The exchange with one group of the pair."""

    role: Role
    backend: Backend
    reply: Reply
    tokens: int
    signature: Signature | None = None
    body: bytearray = field(default_factory=bytearray)
    settled: bool = False
    gave_up: bool = False
    """The group said that it gives the stream up."""
    died: bool = False
    """The group said that it has failed."""

    @property
    def ahead(self) -> float | None:
        """How far the group's clock is ahead, where it refuses for no other reason."""
        if self.signature is None:
            return None
        return self.signature.corrected(self.reply.status, self.reply.headers)

    @property
    def healthy(self) -> bool | None:
        """What this exchange says of the backend (Fleet.end)."""
        if self.reply.error is not None or self.died:
            return False
        if self.ahead is not None:
            return None
        if self.reply.status in FAULTS:
            return None if _code(bytes(self.body)) == NotFinite.code else False
        if self.gave_up:
            return None
        return True if self.reply.ended and self.reply.status == 200 else None

    def settle(self, fleet: Fleet) -> None:
        """It is over, or its rest is not wanted: take its load off the backend."""
        if not self.settled:
            self.settled = True
            lives = self.reply.error is None and not self.died
            fleet.end(self.backend, self.tokens, self.healthy, lives)
            self.reply.close()


class Attempt:
    """The prefill side first, the decode side last; a unified group is both."""

    def __init__(self, fleet: Fleet, call: Call, pick: Pick, client: Client) -> None:
        self._fleet = fleet
        self._call = call
        self._client = client
        self._name = secrets.token_hex(4)
        self.sides: list[Side] = []
        first = fleet[pick.prefill]
        if pick.decode is None:
            self._post("unified", first, None, call.prompt_tokens + call.output_tokens)
        else:
            self._post("prefill", first, None, call.prompt_tokens)
            self._post("decode", fleet[pick.decode], first, call.output_tokens)

    @property
    def first(self) -> Side:
        return self.sides[0]

    @property
    def last(self) -> Side:
        return self.sides[-1]

    async def opened(self, *, surely: bool = False) -> AttemptFailure | None:
        """Wait until it has something for the client, has failed, or the client is gone.

        `surely`: wait for its last side, so that a stream that migrates finds the pair at work.
        """
        while not self._client.gone:
            self.collect()
            if failure := self.failure():
                return failure
            if self.answering(surely):
                return None
            await self._client.wakeup.wait()
        return None

    def failure(self) -> AttemptFailure | None:
        """The failure so far; the prefill side's before the decode side's."""
        return next((f for side in self.sides if (f := self.failure_of(side))), None)

    def failure_of(self, side: Side) -> AttemptFailure | None:
        reply = side.reply
        if reply.error is not None:
            return self._lost(side, reply.error)
        if reply.ended and reply.status != 200:
            return self._refused(side)
        return None

    def gave_up(self, side: Side, status: int, body: bytes) -> AttemptFailure:
        """The failure when the stream of `side` ended with this error."""
        side.gave_up = True
        return self._answered(side, status, body, (JSON,))

    def answering(self, surely: bool = False) -> bool:
        """There is something to give to the client."""
        first, last = self.first.reply, self.last.reply
        if not self._call.stream:
            return first.status == 200 and last.status == 200 and last.ended
        if first.status == 200 and first.buffered and not surely:
            return True
        # A server's head comes with the first token, which may release no event.
        come = last.status == 200 and (surely or last.buffered > 0 or last.ended)
        return come and (first.ended or first is last)

    def collect(self) -> None:
        """Collect bodies that are needed whole: errors, and answers that do not stream."""
        for side in self.sides:
            if side.reply.status not in (0, 200) or not self._call.stream:
                side.body += side.reply.take()

    def settle(self, side: Side) -> None:
        """One side is done."""
        side.settle(self._fleet)

    def close(self) -> None:
        """Give up all that is not over: its groups see their client leave."""
        for side in self.sides:
            side.settle(self._fleet)

    def _post(self, role: Role, backend: Backend, peer: Backend | None, tokens: int) -> None:
        call, signature = self._call, None
        headers = list(call.headers)
        if call.path in STREAMED and backend.key is not None:
            ours = internal_headers(call, role, peer, self._name)
            signature = Signature(backend.key, ("POST", call.path), ours, backend.clock)
            headers += signature.headers
        self._fleet.start(backend, tokens)
        reply = backend.upstream.request(
            call.method, call.path, headers, call.body, poke=self._client.wakeup.set
        )
        self.sides.append(Side(role, backend, reply, tokens, signature))

    def _lost(self, side: Side, error: BackendLost) -> AttemptFailure:
        lost = Unavailable(f"the {side.role} group was lost: {error}", hint="ask again")
        headers = (JSON, (b"retry-after", b"1"))
        untaken = not any(each.reply.sent for each in self.sides)
        died, key = side.reply.sent, side.backend.found.key
        return AttemptFailure(
            503, error_body(lost), key, headers, "lost", died=died, untaken=untaken
        )

    def _refused(self, side: Side) -> AttemptFailure:
        reply, body = side.reply, bytes(side.body)
        if (ahead := side.ahead) is not None:
            # It began nothing. The next attempt may use it again, by its own clock.
            side.backend.clock = ahead
            late = WrongClock(f"the clock of the {side.role} group has jumped", headers={})
            return AttemptFailure(503, error_body(late), "", (JSON,))
        if reply.status in SIGNATURE_REFUSED:
            error = Unavailable(f"the {side.role} group refuses the router's signature")
            key = side.backend.found.key
            return AttemptFailure(502, error_body(error), key, (JSON,), untaken=True)
        kept = tuple((n, v) for n, v in reply.headers.items() if n in _KEPT)
        return self._answered(side, reply.status, body, kept)

    def _answered(
        self, side: Side, status: int, body: bytes, headers: tuple[tuple[bytes, bytes], ...]
    ) -> AttemptFailure:
        """The failure that the group of `side` answered."""
        side.died = _died(body)
        return AttemptFailure(
            status, body, self._blamed(side, body), headers, _reason(body), died=side.died
        )

    def _blamed(self, side: Side, body: bytes) -> str:
        if _code(body) == TransferFailed.code:  # the side that says so blames the other
            side = self.first if side is self.last else self.last
        return side.backend.found.key


_KEPT = frozenset({b"content-type", b"retry-after"})


def internal_headers(call: Call, role: Role, peer: Backend | None, attempt: str) -> dict[str, str]:
    """What the engine learns besides the body (router.md); decode learns its `peer`.

    Both sides know the work by `attempt` too: the end of an earlier one may come after its begin.
    """
    ours = {
        "x-pds-request-id": call.request_id,
        "x-pds-attempt": attempt,
        "x-pds-created": str(call.created),
        "x-pds-seed": str(call.seed),
        "x-pds-role": role,
    }
    if call.stream:
        ours["x-pds-journal"] = "1"
    if peer is not None:
        ours["x-pds-peer"] = (peer.state and peer.state.control) or ""
        ours["x-pds-peer-group"] = peer.group
    return ours


def _reason(body: bytes) -> str:
    code = _code(body)
    return code if code in (Drained.code, Preempted.code) else "failed"


def _died(body: bytes) -> bool:
    """The group has failed, and the request with it."""
    code, message = _error(body)
    former = code == Unavailable.code and message.startswith(DIED)
    return code == GroupFailed.code or former


def _code(body: bytes) -> str:
    return _error(body)[0]


def _error(body: bytes) -> tuple[str, str]:
    """Code and message of an error object; empty where it is none."""
    try:
        error = json.loads(body)["error"]
        return str(error["code"]), str(error.get("message", ""))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "", ""
