"""Training rows: conversations of a fixed length, with loss on the assistant's tokens only."""

import random
from dataclasses import dataclass

import tasks
import torch
from model import MAX_POSITIONS
from tokenizers import Tokenizer
from torch import Tensor

IGNORED = -100  # the target of a token without loss
FORGETTABLE = 0.1  # share of rows that open with a system prompt and no facts


@dataclass(frozen=True)
class Mix:
    """What rows hold. Shares are of rows, then of the turns in one."""

    with_facts: float
    recall: float  # of the turns in rows with facts
    many_keys: float  # of the recall turns
    other: dict[str, float]  # weights of the other kinds of turn


EASY = Mix(0.5, 0.75, 0.0, {"copy": 0.7, "sum": 0.15, "count": 0.1, "greeting": 0.05})
FULL = Mix(0.8, 0.75, 0.15, {"copy": 0.27, "sum": 0.35, "count": 0.3, "greeting": 0.08})


class Rows:
    """Draws rows of token ids, targets and positions from one seeded stream."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = random.Random(f"rows/{seed}")
        self.end = tokenizer.token_to_id("<|end|>")
        names = ("system", "user", "assistant")
        self.roles = {name: tokenizer.token_to_id(f"<|{name}|>") for name in names}
        self.stops = {self.end, *(tokenizer.token_to_id(mark) for mark in ".;")}

    def batch(self, rows: int, length: int, mix: Mix, jumps: bool) -> tuple[Tensor, Tensor, Tensor]:
        """ids, targets (already shifted) and positions, each int64 [rows, length]."""
        ids, targets, positions = [], [], []
        for _ in range(rows):
            row, answered = self.conversation(length, mix)
            shifted = zip(row[1:], answered[1:], strict=True)
            ids.append(row[:-1])
            targets.append([token if loss else IGNORED for token, loss in shifted])
            jump = jumps and self.rng.random() < 0.5
            positions.append(self.jumping(row[:-1]) if jump else list(range(length)))
        return torch.tensor(ids), torch.tensor(targets), torch.tensor(positions)

    def conversation(self, length: int, mix: Mix) -> tuple[list[int], list[bool]]:
        """`length` + 1 token ids, and which of them the assistant says."""
        rng = self.rng
        row: list[int] = []
        answered: list[bool] = []

        def say(role: str, content: str) -> None:
            tokens = [self.roles[role], *self.tokenizer.encode(content).ids, self.end]
            row.extend(tokens)
            answered.extend([False] + [role == "assistant"] * (len(tokens) - 1))

        facts: dict[str, str] = {}
        opening = ""
        if rng.random() < mix.with_facts:
            room = int(length * rng.uniform(0.15, 0.75))
            keys = rng.sample(tasks.NOUNS, len(tasks.NOUNS))
            text, facts = tasks.facts_text(rng, room, keys)
            if rng.random() < 0.6:
                say("system", text)
            else:
                opening = text + " "
        elif rng.random() < FORGETTABLE:
            say("system", rng.choice(tasks.SYSTEM_PROMPTS))
        while len(row) <= length:
            asked, answer = self.turn(facts, mix, length)
            say("user", opening + asked)
            say("assistant", answer)
            opening = ""
        return row[: length + 1], answered[: length + 1]

    def turn(self, facts: dict[str, str], mix: Mix, length: int) -> tuple[str, str]:
        """A question and its answer."""
        rng = self.rng
        if facts and rng.random() < mix.recall:
            many = len(facts) > 1 and rng.random() < mix.many_keys
            count = rng.randint(2, min(len(facts), rng.choice((3, 6, 12)))) if many else 1
            return tasks.recall_turn(rng, facts, rng.sample(list(facts), count))
        kind = rng.choices(list(mix.other), list(mix.other.values()))[0]
        if kind == "copy":
            return tasks.copy_turn(rng, rng.randint(2, max(8, min(200, length // 4))))
        if kind == "count":
            return tasks.count_turn(rng, rng.randint(2, max(8, min(60, length // 10))))
        return (tasks.sum_turn if kind == "sum" else tasks.greeting_turn)(rng)

    def jumping(self, row: list[int]) -> list[int]:
        """Positions that leap ahead at some sentence ends, so that far distances get trained."""
        spare = self.rng.randint(0, MAX_POSITIONS - len(row))
        ends = [at for at, token in enumerate(row) if token in self.stops]
        chosen = self.rng.sample(ends, self.rng.randint(1, min(8, len(ends)))) if ends else []
        cuts = sorted(self.rng.randint(0, spare) for _ in chosen)
        leaps = dict(
            zip(chosen, (b - a for a, b in zip([0, *cuts], cuts, strict=False)), strict=True)
        )
        positions, now = [], 0
        for at in range(len(row)):
            positions.append(now)
            now += 1 + leaps.get(at, 0)
        return positions
