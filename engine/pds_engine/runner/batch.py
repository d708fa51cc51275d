"""From a plan and the tables to a step's input tensors. Nothing is read back from the device, and
nothing waits for it."""

from dataclasses import dataclass
from itertools import accumulate

import torch
from pds_kernels.plan import AttentionPlan
from pds_kernels.upload import upload
from torch import Tensor

from pds_engine.errors import ProtocolError
from pds_engine.messages import Row, StepPlan
from pds_engine.runner.tables import HostSlot, Tables


@dataclass(frozen=True, slots=True)
class Scored:
    """Part of a prompt whose log-probabilities are asked for."""

    at: int
    """Where in T its first position is; the others follow."""
    tokens: tuple[int, ...]
    """The prompt's token after each position."""
    likeliest: int
    """How many of the likeliest tokens are scored beside it."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's inputs: T tokens, with padding at the end. R of them are sampled from."""

    tokens: Tensor
    positions: Tensor
    attention: AttentionPlan
    sampled: Tensor
    """[R] int64: where in T the sampling rows end, in the plan's order."""
    slots: Tensor
    """[R] int64: their slots."""
    samples: tuple[tuple[HostSlot, int], ...]
    """Their slots' host parts, and the index in the output that each token will have."""
    scored: tuple[Scored, ...] = ()
    ends: tuple[int, ...] = ()
    """`sampled` on the host."""


@dataclass(slots=True)
class _StepRow:
    row: Row
    slot: HostSlot
    at: int = 0
    """Where the row begins among the step's tokens."""

    @property
    def end(self) -> int:
        return self.row.start + self.row.length


def build(plan: StepPlan, tables: Tables, padded: int) -> Batch:
    """The inputs of `plan`, padded to `padded` tokens; without rows there may be none at all.

    Chunks come first and decode rows after them, in order of their contexts. A row's tokens are
    those that came with Admit; the one past them is the slot's last sampled token.

    Raises:
        ProtocolError: a row names a foreign generation, lacks pages, or reads an unknown token.
    """
    held = tables.take(plan.rows)
    parts = [_StepRow(row, slot) for row, slot in zip(plan.rows, held, strict=True)]
    for part in parts:
        _check(part, tables.page_size)
    ordered = sorted(parts, key=_place)
    tokens, positions, owners = _tokens(ordered, tables, padded)
    pages = tables.pages[owners, positions // tables.page_size]
    write_slots = (positions % tables.page_size).add(pages, alpha=tables.page_size)
    wanted = [part for part in parts if part.row.samples]
    ends = [part.at + part.row.length - 1 for part in wanted]
    sampled, slots = _ints(tables, ends, [part.row.slot for part in wanted])
    return Batch(
        tokens=tokens,
        positions=positions,
        attention=_attention(ordered, tables, write_slots),
        sampled=sampled,
        slots=slots,
        samples=tuple((part.slot, part.end - part.slot.prompt_len) for part in wanted),
        scored=tuple(_scored(part) for part in parts if part.row.scores),
        ends=tuple(ends),
    )


def _scored(part: _StepRow) -> Scored:
    slot = part.slot
    following = slot.known[part.row.start + 1 : min(part.end + 1, slot.prompt_len)]
    return Scored(part.at, following, slot.sampling.prompt_logprobs or 0)


def _check(part: _StepRow, page_size: int) -> None:
    known, held = len(part.slot.known), len(part.slot.pages) * page_size
    if part.end > held:
        raise ProtocolError(
            f"slot {part.row.slot} computes up to position {part.end} with pages for {held}"
        )
    if part.end > known and part.row.length > 1:
        raise ProtocolError(
            f"slot {part.row.slot} computes up to position {part.end} of {known} known tokens"
        )


def _place(part: _StepRow) -> int:
    """Where a row stands among a step's, as AttentionPlan has them."""
    return part.end if part.row.length == 1 else 0


def _tokens(parts: list[_StepRow], tables: Tables, padded: int) -> tuple[Tensor, Tensor, Tensor]:
    """Token id, position and slot of every token, [T] each; padding belongs to the null slot."""
    tokens: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    unknown: list[int] = []
    for part in parts:
        part.at = len(tokens)
        start, end = part.row.start, part.end
        if end > len(part.slot.known):
            unknown.append(part.at)
            tokens.append(0)
        else:
            tokens.extend(part.slot.known[start:end])
        positions.extend(range(start, end))
        owners.extend([part.row.slot] * part.row.length)
    padding = max(0, padded - len(tokens))
    tokens.extend([0] * padding)
    positions.extend([0] * padding)
    owners.extend([tables.null_slot] * padding)
    ids, places, slots = _ints(tables, tokens, positions, owners)
    if len(unknown) == len(tokens):
        ids = tables.last_token[slots]
    elif unknown:
        (last,) = _ints(tables, unknown)
        ids[last] = tables.last_token[slots[last]]
    return ids, places, slots


def _attention(parts: list[_StepRow], tables: Tables, write_slots: Tensor) -> AttentionPlan:
    ends = [part.end for part in parts]
    slots = [part.row.slot for part in parts]
    starts = [0, *accumulate(part.row.length for part in parts)]
    numbers = upload([*ends, *slots, *starts], torch.int32, tables.device)
    sizes = [len(ends), len(slots), len(starts)]
    seq_lens, owners, cu_seqlens_q = numbers.split_with_sizes(sizes)
    most = -(-max(ends, default=0) // tables.page_size)
    past = tables.starts[:most] >= seq_lens.unsqueeze(1)
    return AttentionPlan(
        page_table=tables.pages[owners, :most].masked_fill_(past, tables.null_page),
        seq_lens=seq_lens,
        cu_seqlens_q=cu_seqlens_q,
        write_slots=write_slots,
        seq_lens_host=tuple(ends),
        cu_seqlens_q_host=tuple(starts),
    )


def _ints(tables: Tables, *lists: list[int]) -> tuple[Tensor, ...]:
    return upload(lists, torch.int64, tables.device).unbind()
