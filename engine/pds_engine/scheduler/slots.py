"""Slots: places in the workers' tables. A generation tells a slot's holder from earlier ones."""

from pds_engine.errors import PdsError


class SlotPool:
    """Slots 0 … count-1; the last one freed is used first, so that tables stay dense."""

    def __init__(self, count: int) -> None:
        self._free = list(range(count - 1, -1, -1))
        self._generations = [0] * count
        self._held = [False] * count

    @property
    def free(self) -> int:
        return len(self._free)

    def acquire(self) -> tuple[int, int]:
        """A slot and its new generation, which counts from 1."""
        if not self._free:
            raise PdsError("no slot is free")
        slot = self._free.pop()
        self._held[slot] = True
        self._generations[slot] += 1
        return slot, self._generations[slot]

    def release(self, slot: int) -> None:
        """No step in flight names the slot any more."""
        if not self._held[slot]:
            raise PdsError(f"slot {slot} is released twice")
        self._held[slot] = False
        self._free.append(slot)
