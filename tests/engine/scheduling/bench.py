"""A scheduler on the bench: messages in by name, what comes out written as short lines.

workers admit 0/1 [0,1]                  slot 0, generation 1, pages 0 and 1
workers step 0: 0:0+16 1:40+1*(7) <- -1  slot 0 computes 16 tokens from 0; slot 1 one from 40, which
                                         samples (*) and needs new page 7; reads no step's token
                                         (?: its prompt's log-probabilities are asked for)
s token r 0=9 stop                       to server s: output 0 of request r is 9, and ends it
sync gather 3: 2|17                      its row of pass 3: two decode tokens, 17 of prompts
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pds_engine.messages import (
    Abort,
    AbortAck,
    Admit,
    Cancel,
    CloseTransfer,
    Expect,
    Failed,
    Forget,
    Gather,
    KvEndpoint,
    Message,
    OpenTransfer,
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
    Wake,
)
from pds_engine.scheduler.digest import token_digest
from pds_engine.scheduler.dp.rows import SyncRow
from pds_engine.scheduler.party import WORKERS, Out, Party
from pds_engine.scheduler.scheduler import Scheduler
from pds_engine.scheduler.settings import Settings

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


def _gather(gather: Gather) -> str:
    row = SyncRow(*gather.row)
    return f"gather {row.pass_id}: {row.decode_tokens}|{row.prompt_tokens}"


SHOW: dict[type, Callable[[Any], str]] = {
    Admit: lambda m: (
        f"admit {m.slot}/{m.gen} {_ids(m.pages)}"
        + (f" from page {m.first_page}" if m.first_page else "")
    ),
    StepPlan: _plan,
    Gather: _gather,
    Wake: lambda m: f"wake {m.pass_id}",
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


class MakeBench(Protocol):
    """The fixture `bench`."""

    def __call__(self, pages: int = 64, ranks: tuple[int, ...] = (), **bounds: Any) -> Bench: ...


def events(b: Bench, steps: int) -> list[str]:
    """What happens in the next steps: each plan, then the oldest step's result."""
    lines = b.plan()
    for _ in range(steps):
        if not b.core.steps.in_flight:
            break
        oldest = b.core.steps.in_flight[0]
        lines += b.done(oldest.plan.step_id, *(oldest.plan.step_id for _ in oldest.samplers))
        lines += b.plan()
    return [line.removeprefix("workers ") for line in lines]
