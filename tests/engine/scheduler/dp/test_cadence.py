"""Steps without a gather, in every order in which things can happen to two or three ranks."""

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from pds_engine.errors import ProtocolError
from pds_engine.messages import Halt, Message
from pds_engine.scheduler.dp.cadence import Cadence


@dataclass
class World:
    """Ranks, the messages between dp rank 0 and the others, and whose requests live."""

    dp: int
    depth: int
    toggles: int
    """How often a rank's last request may still end, or a first one come."""
    ranks: list[Cadence] = field(init=False)
    next_id: list[int] = field(init=False)
    alive: list[bool] = field(init=False)
    lines: dict[tuple[int, int], deque[Message]] = field(init=False)

    def __post_init__(self) -> None:
        self.ranks = [Cadence(rank, self.dp, self.depth) for rank in range(self.dp)]
        self.next_id, self.alive = [0] * self.dp, [False] * self.dp
        pairs = [(0, other) for other in range(1, self.dp)]
        self.lines = {line: deque() for pair in pairs for line in (pair, pair[::-1])}

    def key(self) -> tuple[object, ...]:
        """States that differ in nothing but the numbers of steps are one."""
        base = min(self.next_id)
        ranks = tuple(
            (r.running, tuple(r._alive), _less(r._halt, base), tuple(r._unaware), _since(r, base))
            for r in self.ranks
        )
        lines = tuple(tuple(_said(m, base) for m in line) for line in self.lines.values())
        ids = tuple(number - base for number in self.next_id)
        return ranks, ids, tuple(self.alive), lines, self.toggles

    def send(self, rank: int, messages: Iterator[Message]) -> None:
        for message in messages:
            for line in [line for line in self.lines if line[0] == rank]:
                self.lines[line].append(message)

    def look(self, rank: int) -> None:
        """What a scheduler does in each turn: issue all that it may."""
        cadence = self.ranks[rank]
        while True:
            self.send(rank, cadence.look(self.alive[rank], self.next_id[rank]))
            done = min(self.next_id) - 1  # a step is done when all have issued it
            full = self.next_id[rank] - 1 - done >= self.depth
            if full or not cadence.may_issue(self.next_id[rank]):
                return
            self.next_id[rank] += 1
            return

    def moves(self) -> list[tuple[str, int, int]]:
        found = [("look", rank, 0) for rank in range(self.dp)]
        found += [("deliver", *line) for line, messages in self.lines.items() if messages]
        if self.toggles:
            found += [("toggle", rank, 0) for rank in range(self.dp)]
        return found

    def after(self, move: tuple[str, int, int]) -> "World":
        world, (kind, one, other) = copy.deepcopy(self), move
        if kind == "look":
            world.look(one)
        elif kind == "toggle":
            world.toggles -= 1
            world.alive[one] = not world.alive[one]
        else:
            message = world.lines[one, other].popleft()
            world.send(other, world.ranks[other].heard(message, world.next_id[other]))
        return world


def _less(number: int | None, base: int) -> int | None:
    return None if number is None else number - base


def _since(rank: Cadence, base: int) -> int:
    return max(rank._woken - base, -1)


def _said(message: Message, base: int) -> object:
    number = getattr(message, "before", getattr(message, "pass_id", base))
    told = getattr(message, "dp_rank", None), getattr(message, "alive", None)
    return type(message).__name__, number - base, *told


@pytest.mark.parametrize(("dp", "depth", "toggles"), [(2, 1, 4), (2, 2, 4), (2, 3, 4), (3, 2, 2)])
def test_all_halt_at_one_step_and_nobody_who_lives_is_left_standing(dp, depth, toggles):
    first = World(dp, depth, toggles)
    seen, open_ = {first.key()}, [first]
    rested = 0
    while open_:
        world = open_.pop()
        further = [world.after(move) for move in world.moves()]
        fresh = [each for each in further if each.key() != world.key() or _moved(each, world)]
        if not fresh:
            # Nothing more can happen: nobody lives, and all are before the same step.
            assert not any(world.alive), world
            assert len(set(world.next_id)) == 1, world.next_id
            assert not any(rank.running for rank in world.ranks)
            rested += 1
        for each in fresh:
            assert max(each.next_id) - min(each.next_id) <= depth
            if each.key() not in seen:
                seen.add(each.key())
                open_.append(each)
    assert rested > 0
    assert len(seen) > 300


def _moved(one: World, other: World) -> bool:
    return one.next_id != other.next_id


def test_a_rank_that_has_gone_further_than_it_can_have_is_found_out():
    cadence = Cadence(1, 2, 2)
    with pytest.raises(ProtocolError, match="halt before step 4, 5 is next"):
        list(cadence.heard(Halt(before=4), 5))
