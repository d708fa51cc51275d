"""One rank's computation: the model's layers of its stage, on pages and slots as a worker's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pds_engine.errors import ProtocolError
from pds_engine.messages import (
    Admit,
    Release,
    Row,
    Sampling,
    StepDone,
    StepPlan,
    TokenLogprobs,
)
from pds_engine.parallel.launch import Launched
from pds_engine.parallel.reads import Reads
from pds_engine.parallel.stage import StagePlace

from pds_simulation import model
from pds_simulation.exchange import INVALID, Hidden

NOWHERE = -1
"""The number of a page that a slot does not hold, as it lies behind its window."""
POISON = 1 << 90
"""A cell of a page that was never written."""


@dataclass(slots=True)
class SimulatedSlot:
    """A slot of this rank's table."""

    gen: int
    prompt_len: int
    known: tuple[int, ...]
    sampling: Sampling
    seed: int
    pages: list[int] = field(default_factory=list)
    """By number; those behind its window may be nowhere, or another request's by now."""
    last: int = INVALID
    """On the first stage: the slot's last token, once it was sampled."""
    said: int = 0
    """On the last stage: the history of the output so far."""


def anybody(page: int) -> bool:
    return True


class SimulatedRunner:
    """Executes plans at once; how long that took is the worker's to say.

    Every rank of a stage computes the same from its own copy of the keys, as an all-reduce leaves
    the same hidden states on each.

    Args:
        window: tokens that a token sees, itself included; None: all before it.
        held: whether the scheduler has given the page to somebody. It must be so of every page
            that a step reads or writes, until the scheduler knows that the step is done.
    """

    def __init__(
        self,
        place: StagePlace,
        shard: int,
        layers: range,
        *,
        pages: int,
        page_size: int,
        max_slots: int,
        window: int | None = None,
        held: Callable[[int], bool] = anybody,
    ) -> None:
        self.layers = layers
        self.page_size = page_size
        self.slots: dict[int, SimulatedSlot] = {}
        self.memory = {layer: [POISON] * (pages * page_size) for layer in layers}
        """Keys by layer: page p's tokens begin at p · page_size."""
        self.reads = Reads()
        self.place = place
        self.shard = shard
        self.held = held
        self._window = window
        self._max_slots = max_slots
        self._done = -1
        self._releases: list[Release] = []

    # ---- orders --------------------------------------------------------------------------------

    def admit(self, order: Admit) -> None:
        if order.slot in self.slots or not 0 <= order.slot < self._max_slots:
            raise ProtocolError(f"Admit names slot {order.slot}, which is taken or does not exist")
        self.slots[order.slot] = SimulatedSlot(
            order.gen,
            len(order.prompt_ids),
            order.prompt_ids + order.output_ids,
            order.sampling,
            order.seed,
            [NOWHERE] * order.first_page + list(order.pages),
            said=model.history(order.output_ids),
        )
        self.reads.admit(order)

    def release(self, order: Release) -> None:
        """Free the slot, at once or when `order.after_step` is done."""
        self._releases.append(order)
        self._free()

    # ---- parallel.stage.StageRunner ------------------------------------------------------------

    def launch(self, plan: StepPlan, hidden: Hidden | None) -> Launched[Hidden]:
        slots = [self._take(row) for row in plan.rows]
        if self.place.first:
            self.reads.check(plan)
        inputs = self._embed(plan, slots) if self.place.first else self._given(plan, hidden)
        computed = tuple(
            self._compute(row, slot, values)
            for row, slot, values in zip(plan.rows, slots, inputs, strict=True)
        )
        if self.place.first and self.place.last:
            self.reads.sampled(plan)
        self._done = plan.step_id
        result = Launched(plan, hidden=Hidden(self.shard, computed))
        if self.place.last:
            tokens, scores = self._sample(plan, slots, computed)
            done = StepDone(step_id=plan.step_id, tokens=tokens, logprobs=scores, elapsed=0.0)
            result = Launched(plan, read=lambda: done)
        self._free()
        return result

    def accept(self, plan: StepPlan, tokens: tuple[int, ...]) -> None:
        rows = [row for row in plan.rows if row.samples]
        if len(rows) != len(tokens) or not all(0 <= token < model.VOCAB for token in tokens):
            raise ProtocolError(
                f"step {plan.step_id} samples for {len(rows)} rows, the first stage got {tokens}"
            )
        for row, token in zip(rows, tokens, strict=True):
            slot = self.slots.get(row.slot)
            if slot is not None and slot.gen == row.gen:
                slot.last = token
        self.reads.accept(plan)

    # ---- steps of the above --------------------------------------------------------------------

    def _take(self, row: Row) -> SimulatedSlot:
        slot = self.slots.get(row.slot)
        if slot is None or slot.gen != row.gen:
            held = None if slot is None else slot.gen
            raise ProtocolError(
                f"a step names slot {row.slot} generation {row.gen}, which holds {held}"
            )
        slot.pages.extend(row.new_pages)
        if row.start + row.length > len(slot.pages) * self.page_size:
            raise ProtocolError(f"slot {row.slot} computes beyond its {len(slot.pages)} pages")
        return slot

    def _embed(self, plan: StepPlan, slots: Sequence[SimulatedSlot]) -> list[Sequence[int]]:
        return [
            [
                model.embed(
                    slot.known[position] if position < len(slot.known) else slot.last, position
                )
                for position in range(row.start, row.start + row.length)
            ]
            for row, slot in zip(plan.rows, slots, strict=True)
        ]

    def _given(self, plan: StepPlan, hidden: Hidden | None) -> Sequence[Sequence[int]]:
        if hidden is None or hidden.shard != self.shard:
            raise ProtocolError(f"step {plan.step_id} was given the hidden states of {hidden}")
        if [len(values) for values in hidden.rows] != [row.length for row in plan.rows]:
            raise ProtocolError(f"step {plan.step_id} was given hidden states of another shape")
        return hidden.rows

    def _compute(self, row: Row, slot: SimulatedSlot, values: Sequence[int]) -> tuple[int, ...]:
        """One row through this stage's layers: keys are written, then read up to each position."""
        size, start, pages = self.page_size, row.start, slot.pages
        window = self._window
        seen = 0 if window is None else max(start + 1 - window, 0)
        """The first position that is read."""
        at = seen // size
        self._expect_held(row, pages[at : -(-(start + row.length) // size)])
        cells = [
            pages[position // size] * size + position % size
            for position in range(start, start + row.length)
        ]
        for layer in self.layers:
            memory = self.memory[layer]
            for cell, value in zip(cells, values, strict=True):
                memory[cell] = model.key(value, layer)
            before: list[int] = []
            for page in pages[at : -(-start // size)]:
                before += memory[page * size : page * size + size]
            before = before[seen - at * size : start - at * size]
            attention = model.attended(before, seen)
            mixed = []
            for position, (cell, value) in enumerate(zip(cells, values, strict=True), start + 1):
                attention += position * memory[cell]
                if window is not None:
                    before.append(memory[cell])
                    if (left := position - window) > seen:
                        attention -= left * before[left - 1 - seen]
                mixed.append(model.mix(value, attention, layer))
            values = mixed
        return tuple(values)

    def _expect_held(self, row: Row, pages: Sequence[int]) -> None:
        if not all(page != NOWHERE and self.held(page) for page in pages):
            raise ProtocolError(
                f"slot {row.slot} reads or writes a page of {pages} that was given back"
            )

    def _sample(
        self, plan: StepPlan, slots: Sequence[SimulatedSlot], computed: Sequence[tuple[int, ...]]
    ) -> tuple[tuple[int, ...], tuple[TokenLogprobs | None, ...]]:
        tokens, scores = [], []
        for row, slot, values in zip(plan.rows, slots, computed, strict=True):
            if not row.samples:
                continue
            index = row.start + row.length - slot.prompt_len
            token = model.sample(values[-1], slot.sampling, slot.seed, index, slot.said)
            slot.said = hash((slot.said, token))
            if self.place.first:
                slot.last = token
            tokens.append(token)
            scores.append(model.logprobs(values[-1], token, slot.sampling.logprobs))
        return tuple(tokens), tuple(scores)

    def _free(self) -> None:
        waiting = []
        for order in self._releases:
            if order.after_step > self._done:
                waiting.append(order)
            elif (slot := self.slots.pop(order.slot, None)) is None or slot.gen != order.gen:
                raise ProtocolError(f"Release names slot {order.slot}/{order.gen}, not there")
            else:
                self.reads.release(order.slot)
        self._releases = waiting
