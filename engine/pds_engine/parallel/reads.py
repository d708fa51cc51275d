"""The first stage's account of last tokens: which it knows, and which output brought each.

A decode row carries no token: it reads its slot's last one. That this is the token of the row's
position is what `StepPlan.depends_on` promises; a wrong promise would read an older token, and
nothing would show it but a wrong answer. So each step is checked before it computes, by positions
that the host knows anyway. No torch, no device read; the worker and the simulation run the same.
"""

from dataclasses import dataclass, field

from pds_engine.errors import ProtocolError
from pds_engine.messages import Admit, Row, StepPlan


@dataclass(slots=True)
class _Output:
    """A message from the last stage: tokens that no later step has overwritten yet."""

    left: int = 0
    read: bool = False


@dataclass(slots=True)
class _Slot:
    gen: int
    given: int
    """Tokens that came with Admit."""
    last: int
    """The position of the last token that is known."""
    sampler: int = -1
    """The last step that samples for the slot."""
    source: _Output | None = None


@dataclass(slots=True)
class Reads:
    """Slots by number, and what became of the outputs that came for them."""

    unneeded: int = 0
    """Outputs that came, and whose tokens were all overwritten before a step had read one."""
    _slots: dict[int, _Slot] = field(default_factory=dict)

    def admit(self, order: Admit) -> None:
        """The slot holds another request: its prompt and output so far are known."""
        given = len(order.prompt_ids) + len(order.output_ids)
        self._slots[order.slot] = _Slot(order.gen, given, given - 1)

    def release(self, slot: int) -> None:
        """Nothing reads the slot any more."""
        freed = self._slots.pop(slot, None)
        if freed is not None:
            self._drop(freed)

    def check(self, plan: StepPlan) -> None:
        """Before `plan` computes: every token that it reads is known. Rows of another generation
        are left to whoever looks their slot up.

        Raises:
            ProtocolError: names the step, the slot and the output that is missing.
        """
        for row in plan.rows:
            slot = self._held(row)
            if slot is None:
                continue
            if row.start + row.length > slot.given:
                if row.length > 1 or row.start != slot.last:
                    raise ProtocolError(_missing(plan, row, slot))
                if slot.source is not None:
                    slot.source.read = True
            if row.samples:
                slot.sampler = plan.step_id

    def sampled(self, plan: StepPlan) -> None:
        """`plan`'s tokens were sampled here: this stage is the last one too."""
        for row in plan.rows:
            if row.samples and (slot := self._held(row)) is not None:
                slot.last = row.start + row.length

    def accept(self, plan: StepPlan) -> None:
        """The output of `plan` has come from the last stage; it may hold no token."""
        output = _Output()
        for row in plan.rows:
            if row.samples and (slot := self._held(row)) is not None:
                self._drop(slot)
                slot.last, slot.source = row.start + row.length, output
                output.left += 1
        self.unneeded += not output.left

    def _held(self, row: Row) -> _Slot | None:
        slot = self._slots.get(row.slot)
        return slot if slot is not None and slot.gen == row.gen else None

    def _drop(self, slot: _Slot) -> None:
        """The slot's token will not be read again."""
        output, slot.source = slot.source, None
        if output is not None:
            output.left -= 1
            self.unneeded += not (output.left or output.read)


def _missing(plan: StepPlan, row: Row, slot: _Slot) -> str:
    cause = f"its last one is that of position {slot.last}"
    if slot.sampler >= 0 and slot.last < row.start:
        cause += f", as the output of step {slot.sampler} has not been received"
    return (
        f"step {plan.step_id}, which depends on step {plan.depends_on}, reads the token of slot "
        f"{row.slot} at position {row.start + row.length - 1}, and the first stage does not know "
        f"it: {cause}"
    )
