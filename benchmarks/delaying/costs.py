"""What a pass of dp ranks costs, and the machines that published runs were made on.

The shape is one for all. A pass takes

    fixed + max over ranks(token · tokens + context · context + square · pairs)
          + shared · all tokens

seconds. `fixed` is `graph` where no rank has a prompt, else `eager`: captured graphs hold decode
rows alone. A rank's tokens are its decode rows and its slices of prompts; its context, the tokens
that its decode rows attend to; its pairs, those of a prompt's token and one before it. The MLP, or
the experts, are spread over all ranks: they take the sum.

docs/data-parallel.md says where each constant is from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple


class Load(NamedTuple):
    """What one rank computes in a pass."""

    rows: int = 0
    """Decode rows."""
    context: int = 0
    tokens: int = 0
    """Of prompts."""
    pairs: float = 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds: of a pass, for a token of a rank, of its context, a pair, a token of all ranks."""

    graph: float
    eager: float
    token: float
    context: float
    square: float
    shared: float

    def of(self, loads: Sequence[Load]) -> float:
        """Seconds that a pass of these loads takes."""
        most, total, prompts = 0.0, 0, 0
        for rows, context, tokens, pairs in loads:
            own = self.token * (rows + tokens) + self.context * context + self.square * pairs
            most = max(most, own)
            total += rows + tokens
            prompts += tokens
        return (self.eager if prompts else self.graph) + most + self.shared * total


CONSTANTS = tuple(field.name for field in fields(Cost))
"""The names of the constants of a Cost."""


@dataclass(frozen=True, slots=True)
class Machine:
    """dp ranks, as a published run had them."""

    cost: Cost
    slots: int
    """Requests that a rank runs at once."""
    chunk: int
    """Tokens of prompts in a rank's pass."""
    kv: int
    """Tokens that a rank's pages hold."""
    separate: bool = False
    """A rank computes prompts or decode rows in a pass; else both, and the chunk holds both."""
    ahead: bool = True
    """A pass is planned when the one before begins: what comes later is in the one after."""
    ranks: int = 8

    def scaled(self, constant: str, factor: float) -> "Machine":
        """With one constant of the cost multiplied."""
        changed = getattr(self.cost, constant) * factor
        return replace(self, cost=replace(self.cost, **{constant: changed}))


MACHINES = {
    # vLLM #44558: DeepSeek-R1 FP4 on 8 GB200, dp 8, experts parallel.
    "vllm": Machine(
        Cost(graph=0.027, eager=0.226, token=3e-5, context=6e-9, square=2e-11, shared=2e-6),
        slots=256,
        chunk=2048,
        kv=1_000_000,
    ),
    # sglang #16363, and its test: Qwen3-0.6B on 8 H200, dp 8, 200,000 tokens of KV a rank.
    "sglang": Machine(
        Cost(graph=0.008, eager=0.014, token=1.7e-6, context=1e-9, square=1e-10, shared=2e-7),
        slots=2048,
        chunk=16384,
        kv=200_000,
        separate=True,
    ),
    # ROCm ATOM #1611: DeepSeek-V4 on 8 MI355X, dp 8.
    "atom": Machine(
        Cost(
            graph=0.0395,
            eager=0.0494,
            token=2.52e-5,
            context=1e-8,
            square=2e-11,
            shared=1.26e-5,
        ),
        slots=256,
        chunk=16384,
        kv=4_000_000,
        separate=True,
    ),
    # Real workers on 2 cores, gloo, 57.9M parameters in float32: delayer.py --measure, --calibrate.
    "cpu": Machine(
        Cost(
            graph=0.0255,
            eager=0.0271,
            token=2.03e-4,
            context=1.15e-5,
            square=1.78e-7,
            shared=2.94e-4,
        ),
        slots=32,
        chunk=512,
        kv=16_384,
        ranks=2,
    ),
}
