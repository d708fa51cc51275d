"""What each dp rank tells the others before a pass: one row of whole numbers, of fixed length.

The rows of all ranks cross in one collective. Whatever is decided about a pass is a function of
them, so that all ranks decide alike.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pds_engine.errors import ProtocolError


class SyncRow(NamedTuple):
    """One rank's proposal for a pass, and what the prefill delayer needs to know of the rank."""

    pass_id: int
    """All rows of a pass have the same: a rank that is elsewhere is found out at once."""
    decode_tokens: int = 0
    """Tokens of the step that it would issue without any prompt."""
    prompt_tokens: int = 0
    """Tokens of prompts that it would compute in this pass."""
    pending_tokens: int = 0
    """Tokens of prompts that it has and has not computed, waiting requests included."""
    running: int = 0
    """Requests that decode."""
    begun: int = 0
    """1: a prompt is half done, and holds pages and its client's patience."""
    kv_low: int = 0
    """1: it has a prompt, and uses less than delayer.low_watermark of its pages and of its slots:
    it computes little until the prompt is in."""
    aged: int = 0
    """1: a prompt that has a slot has waited for longer than delayer.max_seconds by this rank's own
    clock. Only the bit crosses: clocks differ, and ranks that compared each other's would decide
    differently."""
    cut: int = 0
    """1: a prompt that has a slot gets no token of this pass: the chunk is full, and waiting brings
    no fuller one."""
    queued: int = 0
    """1: a prompt has no slot yet: when running requests end, a later pass has more prompts."""
    price: int = 0
    """What its prompts would add to the pass, and …"""
    fixed: int = 0
    """… what any prompts add to one, in tenths of a pass without, as this rank has measured it
    (dp/price.py)."""
    beside: int = 0
    """Decode tokens of the step with prompts: decode_tokens, or none where prompts are computed
    apart (scheduler.chunked_prefill)."""


WIDTH = len(SyncRow._fields)
"""Whole numbers in a row."""


def unpack(values: Sequence[int], dp: int) -> tuple[SyncRow, ...]:
    """The rows of all ranks, in order, from what the collective brought.

    Raises:
        ProtocolError: they are not `dp` rows, or not all of one pass.
    """
    if len(values) != dp * WIDTH:
        raise ProtocolError(f"{len(values)} numbers were gathered, {dp} ranks send {WIDTH} each")
    rows = tuple(SyncRow(*values[at : at + WIDTH]) for at in range(0, len(values), WIDTH))
    if len(passes := {row.pass_id for row in rows}) > 1:
        raise ProtocolError(f"dp ranks are in different passes: {sorted(passes)}")
    return rows


def tokens(rows: Iterable[SyncRow], *, prompts: bool) -> tuple[int, ...]:
    """What each rank computes in the pass, with or without its prompts."""
    return tuple(
        row.beside + row.prompt_tokens if prompts and row.prompt_tokens else row.decode_tokens
        for row in rows
    )
