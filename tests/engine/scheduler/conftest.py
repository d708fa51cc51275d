"""A scheduler on the bench: messages in by name, what comes out written as short lines.

workers admit 0/1 [0,1]                  slot 0, generation 1, pages 0 and 1
workers step 0: 0:0+16 1:40+1*(7) <- -1  slot 0 computes 16 tokens from 0; slot 1 one from 40, which
                                         samples (*) and needs new page 7; reads no step's token
                                         (?: its prompt's log-probabilities are asked for)
s token r 0=9 stop                       to server s: output 0 of request r is 9, and ends it
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from typing import Any

import pytest
from bounds import bounded
from pds_engine.messages import (
    Abort,
    AbortAck,
    Admit,
    Cancel,
    CloseTransfer,
    Expect,
    Failed,
    Forget,
    Forgotten,
    KvEndpoint,
    Message,
    OpenTransfer,
    Push,
    PushDone,
    Queued,
    Ready,
    Refused,
    Release,
    Sampling,
    Source,
    StepDone,
    StepPlan,
    Submit,
    Token,
    TransferClosed,
    TransferDone,
    TransferOffer,
)
from pds_engine.scheduler.digest import token_digest
from pds_engine.scheduler.party import WORKERS, Out, Party
from pds_engine.scheduler.scheduler import Scheduler
from pds_engine.scheduler.settings import Settings

PAGE = 4
"""Tokens in a page of the fake workers' memory."""
SERVER = Party("server", "s")
P = Party("prefill", "p:8001")
D = Party("decode", "d")


def _ids(values: Sequence[int]) -> str:
    return "[" + ",".join(map(str, values)) + "]"


def _plan(plan: StepPlan) -> str:
    rows = []
    for row in plan.rows:
        text = f"{row.slot}:{row.start}+{row.length}" + "*" * row.samples + "?" * row.scores
        rows.append(text + (f"({','.join(map(str, row.new_pages))})" if row.new_pages else ""))
    line = f"step {plan.step_id}: {' '.join(rows)} <- {plan.depends_on}"
    line += " sends" if plan.expects_output else ""
    for push in plan.pushes:
        end = " last" if push.last else ""
        line += f" push {push.transfer} {_ids(push.src_pages)}>{_ids(push.dst_pages)}{end}"
    return line


SHOW: dict[type, Callable[[Any], str]] = {
    Admit: lambda m: f"admit {m.slot}/{m.gen} {_ids(m.pages)}",
    StepPlan: _plan,
    Release: lambda m: f"release {m.slot}/{m.gen} after {m.after_step}",
    Token: lambda m: f"token {m.request_id} {m.index}={m.token} {m.finish_reason or ''}".strip(),
    Failed: lambda m: f"failed {m.request_id} {m.status} {m.code}",
    OpenTransfer: lambda m: f"open {m.transfer}@{m.epoch}",
    CloseTransfer: lambda m: f"close {m.transfer}",
    Expect: lambda m: f"expect {m.transfer}@{m.epoch} {_ids(m.pages)}",
    Forget: lambda m: f"forget {m.transfer}@{m.epoch}",
    TransferOffer: lambda m: (
        f"offer {m.transfer}@{m.epoch} {_ids(m.pages)}"
        + (f" from {m.start_token}" if m.start_token else "")
    ),
    Queued: lambda m: f"queued {' '.join(m.transfers)}",
    Refused: lambda m: f"refused {m.transfer} {m.code}",
    TransferDone: lambda m: f"done {m.transfer}@{m.epoch} {m.token} {m.finish_reason}",
    Abort: lambda m: f"abort {m.transfer}@{m.epoch}",
    AbortAck: lambda m: f"ack {m.transfer}@{m.epoch} {m.code} {'' if m.drained else 'undrained'}",
}


def show(out: Sequence[Out]) -> list[str]:
    return [
        f"{item.to.name or item.to.kind} {SHOW[type(item.message)](item.message)}".strip()
        for item in out
    ]


@dataclass
class Bench:
    """One scheduler, ready, with pages of 16 tokens; `now` stands still unless a test moves it."""

    settings: Settings
    ranks: tuple[int, ...]
    """How many pages each joined rank has."""
    now: float = 100.0
    core: Scheduler = field(init=False)

    def __post_init__(self) -> None:
        self.core = Scheduler(self.settings, "us")
        for rank, pages in enumerate(self.ranks):
            endpoint = KvEndpoint(rank=rank, shard=b"", pages=pages, backends={})
            self.handle(
                WORKERS, Ready(rank=rank, pages=pages, kv_fingerprint="f", endpoint=endpoint)
            )

    def handle(self, sender: Party, message: Message) -> list[str]:
        return show(self.core.handle(sender, message, self.now))

    def pushed(self, name: str, rank: int = 0) -> list[str]:
        return self.handle(WORKERS, PushDone(transfer=name, rank=rank, bytes=1, seconds=0.1))

    def closed(self, name: str, rank: int = 0, drained: bool = True) -> list[str]:
        return self.handle(WORKERS, TransferClosed(transfer=name, rank=rank, drained=drained))

    def submit(
        self, name: str, prompt: int | Sequence[int], max_tokens: int, **more: Any
    ) -> list[str]:
        ids = tuple(range(prompt)) if isinstance(prompt, int) else tuple(prompt)
        hint = self.settings.role
        source = Source(address=P.name, group="p") if hint == "decode" else None
        named = ("priority", "deadline", "output_ids", "since", "resumable")
        about = {name: more.pop(name) for name in named if name in more}
        message = Submit(
            request_id=name,
            prompt_ids=ids,
            sampling=Sampling(max_tokens=max_tokens, **more),
            seed=1,
            role_hint=hint,
            source=source,
            **about,
        )
        return self.handle(SERVER, message)

    def offer(
        self, name: str, prompt: int, pages: Sequence[int], epoch: int = 1, **more: Any
    ) -> list[str]:
        values = {
            "prompt_digest": token_digest(range(prompt)),
            "start_token": 0,
            "incarnation": "them",
            "kv_fingerprint": "f",
            "ranks": (),
        }
        offer = TransferOffer(transfer=name, epoch=epoch, pages=tuple(pages), **(values | more))
        return self.handle(D, offer)

    def cancel(self, name: str) -> list[str]:
        return self.handle(SERVER, Cancel(request_id=name))

    def plan(self) -> list[str]:
        return show(self.core.plan(self.now))

    def done(self, step: int, *tokens: int, **more: Any) -> list[str]:
        """The step's result, and what is sent upon it, before the next plan."""
        return show(self.core.handle(*self.answer(step, *tokens, **more)))

    def answer(self, step: int, *tokens: int, **more: Any) -> tuple[Party, Message, float]:
        """The step's result, as the core takes it."""
        values = {"logprobs": (), "elapsed": 0.0} | more
        return WORKERS, StepDone(step_id=step, tokens=tokens, **values), self.now

    def tick(self, now: float) -> list[str]:
        self.now = now
        return show(self.core.tick(now))

    def lost(self, party: Party) -> list[str]:
        return show(self.core.lost(party, self.now))

    @property
    def free(self) -> int:
        return self.core.ledger.pool.free


@pytest.fixture(scope="session")
def bench() -> Callable[..., Bench]:
    def make(pages: int = 64, ranks: tuple[int, ...] = (), **bounds: Any) -> Bench:
        small = {"chunk_size": 32, "max_step_tokens": 40, "max_running": 4, "max_waiting": 4}
        small["prefix_cache"] = False  # page numbers are those just freed, unless a test says so
        settings = bounded(**(small | bounds))
        return Bench(settings, ranks or (pages,) * settings.ranks)

    return make


Memory = dict[tuple[int, int], int]


@dataclass
class FakeSlot:
    gen: int
    tokens: list[int]
    pages: list[int]
    given: int
    """Tokens that came with the admission; later ones were sampled by a step."""
    sampled_in: int = -1


@dataclass
class FakeWorker:
    """One rank: executes orders as they come, and pushes when told to."""

    rank: int
    memory: Memory = field(default_factory=dict)
    orders: deque[Message] = field(default_factory=deque)
    reports: deque[Message] = field(default_factory=deque)
    slots: dict[int, FakeSlot] = field(default_factory=dict)
    open: dict[str, int] = field(default_factory=dict)
    closing: set[str] = field(default_factory=set)
    pushes: deque[tuple[Push, int]] = field(default_factory=deque)
    fenced: bool = True
    """As a receiver: places no byte of a transfer before Expect and after Forget."""
    expected: set[tuple[str, int]] = field(default_factory=set)
    forgotten: set[tuple[str, int]] = field(default_factory=set)

    @staticmethod
    def key(before: int, token: int) -> int:
        """What a token leaves in memory: it depends on all tokens before it, as real keys do."""
        return (before * 31 + token + 1) % 1_000_003

    @classmethod
    def choose(cls, tokens: Iterable[int]) -> int:
        """What the fake model says after `tokens`."""
        return cls.speak(islice(accumulate(tokens, cls.key, initial=1), 1, None))

    @staticmethod
    def speak(keys: Iterable[int]) -> int:
        """What it says when it reads `keys`: every one counts, and its place."""
        value = 1
        for key in keys:
            value = (value * 31 + key) % 1009
        return value % 23

    def work(self) -> None:
        order = self.orders.popleft()
        match order:
            case Admit():
                assert order.slot not in self.slots, "a slot is admitted while it is held"
                tokens = [*order.prompt_ids, *order.output_ids]
                self.slots[order.slot] = FakeSlot(order.gen, tokens, list(order.pages), len(tokens))
            case StepPlan():
                self.step(order)
            case Release():
                assert self.slots.pop(order.slot).gen == order.gen
            case OpenTransfer():
                assert order.transfer not in self.open, "a transfer is opened twice"
                self.open[order.transfer] = order.epoch
            case CloseTransfer():
                self.closing.add(order.transfer)
                self.close_drained()
            case Expect():
                self.expected.add((order.transfer, order.epoch))
            case Forget():
                self.expected.remove((order.transfer, order.epoch))
                self.forgotten.add((order.transfer, order.epoch))
                self.reports.append(
                    Forgotten(
                        transfer=order.transfer,
                        epoch=order.epoch,
                        rank=self.rank,
                        fenced=self.fenced,
                    )
                )
            case _:
                raise TypeError(order)

    def step(self, plan: StepPlan) -> None:
        tokens = []
        for row in plan.rows:
            slot = self.slots[row.slot]
            assert slot.gen == row.gen
            reads_a_step = row.start >= slot.given
            assert not reads_a_step or 0 <= slot.sampled_in <= plan.depends_on
            slot.pages += row.new_pages
            end = row.start + row.length
            places = [(slot.pages[i // PAGE], i % PAGE) for i in range(end)]
            before = self.memory.get(places[row.start - 1], -1) if row.start else 1
            for position in range(row.start, end):
                before = self.key(before, slot.tokens[position])
                self.memory[places[position]] = before
            if row.samples:
                assert end == len(slot.tokens), "sampled before the end of what is known"
                tokens.append(self.speak(self.memory.get(place, -1) for place in places))
                slot.tokens.append(tokens[-1])
                slot.sampled_in = plan.step_id
        self.pushes.extend(
            (push, self.open[push.transfer])
            for push in plan.pushes
            if push.transfer in self.open and push.transfer not in self.closing
        )
        if self.rank == 0:
            self.reports.append(
                StepDone(
                    step_id=plan.step_id,
                    tokens=tuple(tokens),
                    logprobs=(),
                    elapsed=sum(row.length * (1 + 0.1 * row.start) for row in plan.rows),
                )
            )

    def close_drained(self, give_up: bool = False) -> None:
        """Answer the closes whose pushes are all carried out; `give_up`: and all others."""
        under_way = {push.transfer for push, _ in self.pushes}
        for name in sorted(self.closing):
            if name not in under_way or give_up:
                self.closing.remove(name)
                del self.open[name]
                drained = name not in under_way
                self.reports.append(TransferClosed(transfer=name, rank=self.rank, drained=drained))


@pytest.fixture(scope="session")
def fake_worker() -> type[FakeWorker]:
    return FakeWorker
