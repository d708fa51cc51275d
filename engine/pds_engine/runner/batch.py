"""From a plan and the tables to a step's input tensors. Nothing is read back from the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pds_engine.errors import ProtocolError
from pds_engine.layers.attention import AttentionPlan, Decode, Extend
from pds_engine.messages import Row, StepPlan
from pds_engine.runner.tables import Slot, Tables


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's inputs: T tokens, padding at the end, of which R are sampled from."""

    tokens: Tensor
    positions: Tensor
    attention: AttentionPlan
    sampled: Tensor
    """[R] int64: where in T the sampling rows end, in the plan's order."""
    slots: Tensor
    """[R] int64: their slots."""
    samples: tuple[tuple[Slot, int], ...]
    """Their slots' host parts, and the index in the output that each token will have."""


@dataclass(frozen=True, slots=True)
class _Part:
    row: Row
    slot: Slot
    order: int
    """The row's place in the plan."""

    @property
    def end(self) -> int:
        return self.row.start + self.row.length


def build(plan: StepPlan, tables: Tables, page_size: int, padded: int) -> Batch:
    """The inputs of `plan`, padded to `padded` tokens.

    Chunks come first and decode rows after them, those of similar context side by side. A row's
    tokens are those that came with Admit; the one past them is the slot's last sampled token.

    Raises:
        ProtocolError: a row names a foreign generation, lacks pages, or reads an unknown token.
    """
    parts = [_Part(row, tables.take(row), order) for order, row in enumerate(plan.rows)]
    for part in parts:
        _check(part, page_size)
    extends = [part for part in parts if part.row.length > 1]
    groups = _similar([part for part in parts if part.row.length == 1], page_size)
    ordered = extends + [part for group in groups for part in group]
    used = sum(part.row.length for part in ordered)
    padding = max(0, padded - used)

    positions = torch.cat(
        [torch.arange(part.row.start, part.end) for part in ordered] + [torch.zeros(padding).long()]
    ).to(tables.device)
    lengths = torch.tensor([part.row.length for part in ordered])
    slots = torch.tensor([part.row.slot for part in ordered], dtype=torch.int64)
    owners = slots.repeat_interleave(lengths).to(tables.device)
    pages = torch.full((used + padding,), tables.null_page, device=tables.device)
    pages[:used] = tables.pages[owners, positions[:used] // page_size]

    starts = dict(zip((part.order for part in ordered), _starts(ordered), strict=True))
    wanted = [part for part in parts if part.row.samples]
    return Batch(
        tokens=_tokens(ordered, padding, tables),
        positions=positions,
        attention=AttentionPlan(
            pages=pages,
            offsets=positions % page_size,
            extends=tuple(_extend(part, starts[part.order], tables, page_size) for part in extends),
            decodes=tuple(_decode(g, starts[g[0].order], tables, page_size) for g in groups),
        ),
        sampled=_indices([starts[part.order] + part.row.length - 1 for part in wanted], tables),
        slots=_indices([part.row.slot for part in wanted], tables),
        samples=tuple((part.slot, part.end - part.slot.prompt_len) for part in wanted),
    )


def _check(part: _Part, page_size: int) -> None:
    known, held = len(part.slot.known), len(part.slot.pages) * page_size
    if part.end > held:
        raise ProtocolError(
            f"slot {part.row.slot} computes up to position {part.end} with pages for {held}"
        )
    if part.end > known and part.row.length > 1:
        raise ProtocolError(
            f"slot {part.row.slot} computes up to position {part.end} of {known} known tokens"
        )


def _similar(parts: list[_Part], page_size: int) -> list[list[_Part]]:
    """Decode rows by context within a factor of two: a group is padded to its longest context."""
    groups: dict[int, list[_Part]] = {}
    for part in parts:
        groups.setdefault(max(8, -(-part.end // page_size) - 1).bit_length(), []).append(part)
    return [groups[size] for size in sorted(groups)]


def _starts(parts: Sequence[_Part]) -> list[int]:
    """Where each part begins among the step's tokens."""
    starts, total = [], 0
    for part in parts:
        starts.append(total)
        total += part.row.length
    return starts


def _tokens(parts: Sequence[_Part], padding: int, tables: Tables) -> Tensor:
    pieces: list[Tensor] = []
    unknown: list[int] = []
    slots: list[int] = []
    blank = torch.zeros(1, dtype=torch.int64)
    for part, start in zip(parts, _starts(parts), strict=True):
        if part.end <= len(part.slot.known):
            pieces.append(part.slot.known[part.row.start : part.end])
        else:
            pieces.append(blank)
            unknown.append(start)
            slots.append(part.row.slot)
    tokens = torch.cat([*pieces, blank.expand(padding)]).to(tables.device)
    if unknown:
        tokens[_indices(unknown, tables)] = tables.last_token[_indices(slots, tables)]
    return tokens


def _extend(part: _Part, at: int, tables: Tables, page_size: int) -> Extend:
    start, length = part.row.start, part.row.length
    mask = None
    if start:
        seen = torch.ones(length, part.end, dtype=torch.bool, device=tables.device)
        mask = seen.tril(diagonal=start)
    pages = tables.pages[part.row.slot, : -(-part.end // page_size)]
    return Extend(slice(at, at + length), part.end, pages, mask)


def _decode(parts: list[_Part], at: int, tables: Tables, page_size: int) -> Decode:
    context = _indices([part.end for part in parts], tables).unsqueeze(1)
    count = -(-max(part.end for part in parts) // page_size)
    held = tables.pages[_indices([part.row.slot for part in parts], tables), :count]
    last = (context - 1) // page_size
    within = torch.arange(count, device=tables.device) <= last
    places = torch.arange(count * page_size, device=tables.device)
    tail = torch.arange(page_size, device=tables.device) > (context - 1) % page_size
    return Decode(
        tokens=slice(at, at + len(parts)),
        pages=held.where(within, tables.null_page),
        unseen=(places >= context).unsqueeze(1),
        last=last.squeeze(1),
        tail=tail[:, None, :, None],
    )


def _indices(values: list[int], tables: Tables) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=tables.device)
