"""Loading a layer's feed-forward block: a gated block, or a mixture of experts.

Experts are stored one by one, and computed with as one tensor. It is filled in place, so that no
more than one expert's matrix is held beside it.
"""

import torch

from pds_engine.models.names import Names
from pds_engine.models.reader import Reader
from pds_engine.models.weights import DenseWeights, ExpertWeights
from pds_engine.parallel.layout import ModelPart
from pds_engine.spec import ExpertsSpec


def dense(reader: Reader, columns: range, total: int, names: Names, name: str) -> DenseWeights:
    """`columns` of a gated block that has `total`, and whose tensors' names begin with `name`."""
    if names.joined:
        halves = [
            reader.read(f"{name}gate_up_proj.weight", moved(columns, start)) for start in (0, total)
        ]
    else:
        halves = [reader.read(f"{name}{half}_proj.weight", columns) for half in ("gate", "up")]
    return DenseWeights(torch.cat(halves), reader.read(f"{name}down_proj.weight", None, columns))


def experts(
    reader: Reader, spec: ExpertsSpec, names: Names, mine: ModelPart, name: str
) -> ExpertWeights:
    """The mixture of the layer whose tensors' names begin with `name`."""
    called, none = names.experts, reader.none()
    held, columns = mine.experts(spec.experts), mine.expert_columns(spec.columns)
    router = reader.read(f"{name}{called.router}.weight")
    gate_up = reader.empty(len(held), 2 * len(columns), router.shape[1])
    down = reader.empty(len(held), router.shape[1], len(columns))
    for place, expert in enumerate(held):
        for half, projection in enumerate((called.gate, called.up)):
            rows = slice(half * len(columns), (half + 1) * len(columns))
            stored = f"{name}{projection.format(expert)}.weight"
            gate_up[place, rows] = reader.read(stored, columns)
        stored = f"{name}{called.down.format(expert)}.weight"
        down[place] = reader.read(stored, None, columns)
    shared = DenseWeights(none, none)
    if spec.shared_columns:
        own = mine.expert_columns(spec.shared_columns)
        shared = dense(reader, own, spec.shared_columns, names, f"{name}{called.shared}.")
    return ExpertWeights(
        router=router.float() if spec.gate.wide else router,
        router_bias=reader.read(f"{name}{called.router}.bias") if spec.gate.bias else none,
        correction=reader.exact(f"{name}{called.correction}") if spec.gate.correction else none,
        gate_up=gate_up,
        gate_up_bias=none,
        down=down,
        down_bias=none,
        shared=shared,
        shared_gate=reader.read(f"{name}{called.shared_gate}.weight") if spec.shared_gate else none,
    )


def moved(part: range, by: int) -> range:
    """`part` of what begins at `by`."""
    return range(part.start + by, part.stop + by)
