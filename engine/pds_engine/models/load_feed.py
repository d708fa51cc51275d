"""Loading a layer's feed-forward block: a gated block, or a mixture of experts.

Experts are computed with as one tensor. It is filled in place, whether they are stored one by one
or in one tensor (gpt-oss), so that no more than one expert's matrix is held beside it.
"""

import torch
from torch import Tensor

from pds_engine.models.matrices import matrix
from pds_engine.models.names import ExpertNames, Names
from pds_engine.models.reader import Reader
from pds_engine.models.weights import DenseWeights, ExpertWeights
from pds_engine.parallel.layout import ModelPart
from pds_engine.spec import ExpertsSpec


def dense(reader: Reader, columns: range, total: int, names: Names, name: str) -> DenseWeights:
    """`columns` of a gated block that has `total`, and whose tensors' names begin with `name`."""
    if names.joined:
        both = f"{name}gate_up_proj.weight"
        gate, up = (both, columns), (both, moved(columns, total))
    else:
        gate, up = (f"{name}gate_proj.weight", columns), (f"{name}up_proj.weight", columns)
    return DenseWeights(
        gate_up=matrix(reader, gate, up),
        down=matrix(reader, (f"{name}down_proj.weight", None, columns)),
    )


def experts(
    reader: Reader, spec: ExpertsSpec, names: Names, mine: ModelPart, name: str
) -> ExpertWeights:
    """The mixture of the layer whose tensors' names begin with `name`."""
    called, none = names.experts, reader.none()
    held, columns = mine.experts(spec.experts), mine.expert_columns(spec.columns)
    router = reader.read(f"{name}{called.router}.weight")
    gate_up = reader.empty(len(held), 2 * len(columns), router.shape[1])
    down = reader.empty(len(held), router.shape[1], len(columns))
    gate_up_bias = down_bias = none
    if called.gate_up:
        _fill_from_stack(reader, called, name, held, columns, gate_up, down)
        if spec.bias:
            gate_up_bias, down_bias = _biases(reader, called, name, held, columns)
    else:
        _fill_one_by_one(reader, called, name, held, columns, gate_up, down)
    shared = DenseWeights(none, none)
    if spec.shared_columns:
        own = mine.expert_columns(spec.shared_columns)
        shared = dense(reader, own, spec.shared_columns, names, f"{name}{called.shared}.")
    return ExpertWeights(
        router=router.float() if spec.gate.wide else router,
        router_bias=reader.read(f"{name}{called.router}.bias") if spec.gate.bias else none,
        correction=reader.exact(f"{name}{called.correction}") if spec.gate.correction else none,
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
        down=down,
        down_bias=down_bias,
        shared=shared,
        shared_gate=reader.read(f"{name}{called.shared_gate}.weight") if spec.shared_gate else none,
    )


def _fill_one_by_one(
    reader: Reader,
    called: ExpertNames,
    name: str,
    held: range,
    columns: range,
    gate_up: Tensor,
    down: Tensor,
) -> None:
    for place, expert in enumerate(held):
        for half, projection in enumerate((called.gate, called.up)):
            rows = slice(half * len(columns), (half + 1) * len(columns))
            stored = f"{name}{projection.format(expert)}.weight"
            gate_up[place, rows] = reader.read(stored, columns)
        stored = f"{name}{called.down.format(expert)}.weight"
        down[place] = reader.read(stored, None, columns)


def _fill_from_stack(
    reader: Reader,
    called: ExpertNames,
    name: str,
    held: range,
    columns: range,
    gate_up: Tensor,
    down: Tensor,
) -> None:
    """Stored matrices are transposed, and gate's and up's columns come by turns."""
    pairs = _pairs(columns)
    for place, expert in enumerate(held):
        one = range(expert, expert + 1)
        [stored] = reader.read(f"{name}{called.gate_up}", one, None, pairs)
        gate_up[place] = _halves(stored.t())
        [stored] = reader.read(f"{name}{called.down}", one, columns)
        down[place] = stored.t()


def _biases(
    reader: Reader, called: ExpertNames, name: str, held: range, columns: range
) -> tuple[Tensor, Tensor]:
    gate_up = reader.read(f"{name}{called.gate_up}_bias", held, _pairs(columns))
    down = reader.read(f"{name}{called.down}_bias", held)
    shared = columns.start > 0  # another rank has the first columns, and adds it
    return _halves(gate_up.t()).t().contiguous(), torch.zeros_like(down) if shared else down


def _pairs(columns: range) -> range:
    """Where gate's and up's `columns` stand when they come by turns."""
    return range(2 * columns.start, 2 * columns.stop)


def _halves(rows: Tensor) -> Tensor:
    """Rows of gate and of up by turns → gate's rows first."""
    return torch.cat((rows[::2], rows[1::2]))


def moved(part: range, by: int) -> range:
    """`part` of what begins at `by`."""
    return range(part.start + by, part.stop + by)
