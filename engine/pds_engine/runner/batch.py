"""From a plan and the tables to a step's input tensors. Nothing is read back from the device, and
nothing waits for it."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from pds_kernels.plan import AttentionPlan
from pds_kernels.upload import sent
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
    end: int
    """The position after its last."""
    at: int = 0
    """Where the row begins among the step's tokens."""


def build(plan: StepPlan, tables: Tables, padded: int) -> Batch:
    """The inputs of `plan`, padded to `padded` tokens; without rows there may be none at all.

    Chunks come first and decode rows after them, in order of their contexts. A row's tokens are
    those that came with Admit; the one past them is the slot's last sampled token.

    Raises:
        ProtocolError: a row names a foreign generation, lacks pages, or reads an unknown token.
    """
    held = tables.take(plan.rows)
    parts = [
        _StepRow(row, slot, row.start + row.length)
        for row, slot in zip(plan.rows, held, strict=True)
    ]
    for part in parts:
        _check(part, tables.page_size)
    ordered = sorted(parts, key=_place)
    host = _tokens(ordered, tables, padded)
    wanted = [part for part in parts if part.row.samples]
    ends = [part.at + part.row.length - 1 for part in wanted]
    positions, write_slots, readers, sampled, slots = _longs(
        tables,
        host.positions,
        host.write_slots,
        host.readers,
        array("q", ends),
        array("q", [part.row.slot for part in wanted]),
    )
    return Batch(
        tokens=_ids(host, readers, tables),
        positions=positions,
        attention=_attention(ordered, tables, write_slots),
        sampled=sampled,
        slots=slots,
        samples=tuple([(part.slot, part.end - part.slot.prompt_len) for part in wanted]),
        scored=tuple([_scored(part) for part in parts if part.row.scores]),
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


class _Tokens:
    """What the host knows of a step's tokens."""

    __slots__ = ("ids", "positions", "readers", "unknown", "write_slots")

    def __init__(self) -> None:
        self.ids: list[int] = []
        """0 where the id is its slot's last sampled token."""
        self.positions = array("q")
        self.write_slots = array("q")
        self.unknown: list[int] = []
        """Where tokens are whose id is that."""
        self.readers = array("q")
        """The slots of these."""


def _tokens(parts: list[_StepRow], tables: Tables, padded: int) -> _Tokens:
    """The parts' tokens one after another; padding is written to the null page."""
    host, size = _Tokens(), tables.page_size
    ids, positions, write_slots = host.ids, host.positions, host.write_slots
    for part in parts:
        part.at = at = len(ids)
        start, end, slot = part.row.start, part.end, part.slot
        if end > len(slot.known):
            host.unknown.append(at)
            host.readers.append(part.row.slot)
            ids.append(0)
        else:
            ids.extend(slot.known[start:end])
        while start < end:
            stop = min(end, start - start % size + size)
            first = slot.pages[start // size] * size + start % size
            if stop - start == 1:
                positions.append(start)
                write_slots.append(first)
            else:
                positions.extend(range(start, stop))
                write_slots.extend(range(first, first + stop - start))
            start = stop
    if (padding := padded - len(ids)) > 0:
        ids.extend([0] * padding)
        positions.extend([0] * padding)
        write_slots.extend([tables.null_page * size] * padding)
    return host


def _ids(host: _Tokens, readers: Tensor, tables: Tables) -> Tensor:
    """Token ids, [T]: those that are known, and the last ones of `readers`."""
    if len(host.unknown) == len(host.ids):
        return tables.last_token[readers]
    if not host.unknown:
        return _longs(tables, array("q", host.ids))[0]
    ids, unknown = _longs(tables, array("q", host.ids), array("q", host.unknown))
    ids[unknown] = tables.last_token[readers]
    return ids


def _attention(parts: list[_StepRow], tables: Tables, write_slots: Tensor) -> AttentionPlan:
    ends = [part.end for part in parts]
    slots = [part.row.slot for part in parts]
    starts = [0, *accumulate([part.row.length for part in parts])]
    numbers = torch.frombuffer(array("i", [*ends, *slots, *starts]), dtype=torch.int32)
    seq_lens, owners, cu_seqlens_q = sent(numbers, tables.device).split_with_sizes(
        [len(ends), len(slots), len(starts)]
    )
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


def _longs(tables: Tables, *lists: "array[int]") -> Sequence[Tensor]:
    """Each as a tensor, by one copy to the device; on a CPU by none."""
    joined = array("q")
    for one in lists:
        joined.extend(one)
        if len(one) % 2:  # a tensor begins at 16 bytes: kernels of Triton are compiled for that
            joined.append(0)
    if not joined:  # frombuffer takes no empty one
        return [torch.zeros(0, dtype=torch.int64, device=tables.device) for _ in lists]
    whole = sent(torch.frombuffer(joined, dtype=torch.int64), tables.device)
    sizes = [len(one) for one in lists]
    begins = accumulate((size + size % 2 for size in sizes[:-1]), initial=0)
    return [whole[at : at + size] for at, size in zip(begins, sizes, strict=True)]
