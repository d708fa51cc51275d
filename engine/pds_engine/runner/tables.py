"""What a worker remembers of its slots: tensors at fixed addresses, and what the host knows.

A step's inputs come from its plan and these tables alone, without a read from the device, so that a
decode step can be replayed as one graph.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pds_kernels.upload import upload
from torch import Tensor

from pds_engine.errors import ProtocolError
from pds_engine.messages import Admit, Row, Sampling


@dataclass(slots=True)
class HostSlot:
    """The host's part of one slot."""

    gen: int
    prompt_len: int
    known: tuple[int, ...]
    """The tokens that came with Admit; later ones are only in Tables.last_token."""
    sampling: Sampling
    seed: int
    pages: list[int] = field(default_factory=list)
    """By number. Those behind its window may be the null page, or another request's by now."""


class Tables:
    """Slots 0 … max_slots-1, and one more, the null slot, to which padding belongs.

    `null_page` is a page of finite content that no request holds; unused entries name it.
    `samples`: this rank is of the stage that samples, and counts tokens for penalties.
    """

    def __init__(
        self,
        max_slots: int,
        max_pages: int,
        page_size: int,
        vocab: int,
        null_page: int,
        device: torch.device,
        samples: bool = True,
    ) -> None:
        self.page_size = page_size
        self.null_slot = max_slots
        self.null_page = null_page
        self.device = device
        shape = (max_slots + 1, max_pages)
        self.pages = torch.full(shape, null_page, dtype=torch.int32, device=device)
        self.last_token = torch.zeros(max_slots + 1, dtype=torch.int64, device=device)
        self.starts = page_size * torch.arange(max_pages, dtype=torch.int32, device=device)
        """[max_pages] int32: the position at which each page of a slot begins."""
        self._vocab = vocab
        self._samples = samples
        self._slots: dict[int, HostSlot] = {}
        self._prompted: Tensor | None = None
        self._counts: Tensor | None = None

    def admit(self, order: Admit) -> None:
        """Slot `order.slot` holds this request from now on.

        Raises:
            ProtocolError: the slot is taken or out of range, or there are more pages than fit.
        """
        if order.slot in self._slots or not 0 <= order.slot < self.null_slot:
            raise ProtocolError(f"Admit names slot {order.slot}, which is taken or does not exist")
        known = order.prompt_ids + order.output_ids
        slot = HostSlot(order.gen, len(order.prompt_ids), known, order.sampling, order.seed)
        slot.pages = [self.null_page] * order.first_page
        self._slots[order.slot] = slot
        self._grow([(order.slot, slot, order.pages)])
        if order.output_ids:
            self.last_token[order.slot] = order.output_ids[-1]
        if self._samples and penalised(order.sampling):
            self._count(order)

    def take(self, rows: Sequence[Row]) -> list[HostSlot]:
        """The slots that `rows` are about, with the rows' new pages.

        Raises:
            ProtocolError: another generation holds a slot, or it has more pages than fit.
        """
        slots, grown = [], []
        for row in rows:
            slot = self._slots.get(row.slot)
            if slot is None or slot.gen != row.gen:
                raise ProtocolError(
                    f"a step names slot {row.slot} generation {row.gen}, "
                    f"which holds {'none' if slot is None else slot.gen}"
                )
            slots.append(slot)
            if row.new_pages:
                grown.append((row.slot, slot, row.new_pages))
        if grown:
            self._grow(grown)
        return slots

    def release(self, index: int, gen: int) -> None:
        """The slot is free. Its pages' entries become the null page."""
        slot = self._slots.get(index)
        if slot is None or slot.gen != gen:
            raise ProtocolError(f"Release names slot {index} generation {gen}, which is not there")
        del self._slots[index]
        self.pages[index, : len(slot.pages)] = self.null_page

    def sampled(self, slots: Tensor, tokens: Tensor) -> None:
        """`tokens` [R] are the latest of `slots` [R]."""
        self.last_token[slots] = tokens
        if self._counts is not None:
            self._counts[slots, tokens] += 1

    def accept(self, rows: Sequence[Row], tokens: Sequence[int]) -> None:
        """`tokens` were sampled for `rows`, by another stage. Rows whose slot has gone over to
        another generation meanwhile are passed over."""
        alive = [
            (row.slot, token)
            for row, token in zip(rows, tokens, strict=True)
            if (slot := self._slots.get(row.slot)) is not None and slot.gen == row.gen
        ]
        if alive:
            slots, latest = upload(alive, torch.int64, self.device).unbind(1)
            self.last_token[slots] = latest

    def penalty_tables(self) -> tuple[Tensor, Tensor]:
        """Which tokens the prompts hold, [slots, vocab] bool, and outputs' counts, int32.

        Made when the first request with penalties comes: most workers never need them.
        """
        if self._prompted is None or self._counts is None:
            shape = (self.null_slot, self._vocab)
            self._prompted = torch.zeros(shape, dtype=torch.bool, device=self.device)
            self._counts = torch.zeros(shape, dtype=torch.int32, device=self.device)
        return self._prompted, self._counts

    def _grow(self, grown: Sequence[tuple[int, HostSlot, tuple[int, ...]]]) -> None:
        """Slots by number, and the pages that each has from now on: written in one copy."""
        most = self.pages.shape[1]
        entries = []
        for index, slot, pages in grown:
            start, end = len(slot.pages), len(slot.pages) + len(pages)
            if end > most:
                raise ProtocolError(f"slot {index} has {end} pages, {most} is the most")
            slot.pages.extend(pages)
            entries += [(index * most + at, page) for at, page in enumerate(pages, start)]
        if entries:
            at, pages_there = upload(entries, torch.int64, self.device).unbind(1)
            self.pages.view(-1)[at] = pages_there.int()

    def _count(self, order: Admit) -> None:
        prompted, counts = self.penalty_tables()
        prompted[order.slot] = False
        prompted[order.slot, upload(order.prompt_ids, torch.int64, self.device)] = True
        counts[order.slot] = 0
        given = upload(order.output_ids, torch.int64, self.device)
        counts[order.slot].index_add_(0, given, torch.ones_like(given, dtype=counts.dtype))


def penalised(sampling: Sampling) -> bool:
    """Whether the tokens so far change the scores of the next one."""
    return (
        sampling.repetition_penalty != 1
        or sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
    )
