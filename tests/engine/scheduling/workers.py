"""Workers that execute plans on fake pages and choose each token by what they read there."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import accumulate

from pds_engine.messages import (
    Admit,
    CloseTransfer,
    Expect,
    Forget,
    Forgotten,
    Message,
    OpenTransfer,
    Push,
    Release,
    StepDone,
    StepPlan,
    TransferClosed,
)

PAGE = 4
"""Tokens in a page of the fake workers' memory."""


NOWHERE = -1
"""The number of a page that a slot does not hold, as it lies behind its window."""
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
    window: int | None = None
    """Tokens that a token sees, itself included; None: all before it."""
    fenced: bool = True
    """As a receiver: places no byte of a transfer before Expect and after Forget."""
    expected: set[tuple[str, int]] = field(default_factory=set)
    forgotten: set[tuple[str, int]] = field(default_factory=set)

    @staticmethod
    def key(before: int, token: int) -> int:
        """What a token leaves in memory: it depends on all tokens before it, as real keys do."""
        return (before * 31 + token + 1) % 1_000_003

    def choose(self, tokens: Iterable[int]) -> int:
        """What the fake model says after `tokens`."""
        keys = list(accumulate(tokens, self.key, initial=1))[1:]
        return self.speak(keys[self.seen(len(keys)) :])

    def seen(self, end: int) -> int:
        """The first position that the token before `end` sees."""
        return 0 if self.window is None else max(end - self.window, 0)

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
                pages = [NOWHERE] * order.first_page + list(order.pages)
                self.slots[order.slot] = FakeSlot(order.gen, tokens, pages, len(tokens))
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
                tokens.append(
                    self.speak(self.memory.get(at, -1) for at in places[self.seen(end) :])
                )
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
