"""What the loader holds of each family is what sizing says, to the byte."""

from pathlib import Path

import cpu_libraries
import pytest
import torch
from pds_engine.config import EngineConfig
from pds_engine.models import loader
from pds_engine.models.loader import load
from pds_engine.models.registry import FAMILIES, check, read_spec
from pds_engine.models.weights import tensors
from pds_engine.parallel.collectives import Alone
from pds_engine.sizing import sizes
from pds_engine.spec import DenseSpec

CPU = torch.device("cpu")
LAYOUTS = {
    "alone": {},
    "pp 2": {"pp": 2},
    "tp 2": {"tp": 2},
    "tp 4": {"tp": 4},
    "dp 2": {"dp": 2},
    "pp 3, tp 2, dp 2": {"pp": 3, "tp": 2, "dp": 2},
    "ep": {"tp": 2, "dp": 2, "ep": True},
}


class Shard(Alone):
    """One of several ranks that never speak to each other: enough to load one."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size


def held(config: EngineConfig, rank: int) -> int:
    """Bytes of what a rank has loaded; what two tensors share counts once."""
    split = config.parallelism
    ranks = Shard(rank % split.tp, split.tp), Shard(rank % split.width, split.width)
    found = tensors(load(config, rank, CPU, *ranks).weights)
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in found}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_rank_holds_as_many_bytes_as_are_counted(
    models: dict[str, Path], architecture: str, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16, though this CPU may want float32: some tensors are wide in any case."""
    monkeypatch.setattr(loader, "compute_dtype", lambda dtype, device: dtype)
    config = EngineConfig.model_validate(
        {
            "model": {"path": models[architecture], "dtype": "bfloat16"},
            "max_model_len": 64,
            "parallelism": LAYOUTS[layout],
        }
    )
    dense = all(isinstance(each.feed, DenseSpec) for each in read_spec(models[architecture]).layers)
    if config.parallelism.ep and dense:
        return  # it has no experts to split
    spec = check(config)
    counted = [each.weights for each in sizes(config, spec)]
    with cpu_libraries.without():
        assert [held(config, rank) for rank in range(len(counted))] == counted


def test_packed_weights_take_what_is_counted_but_for_their_last_panels(qwen3: Path) -> None:
    tree = {"model": {"path": qwen3, "dtype": "float32"}, "max_model_len": 64}
    config = EngineConfig.model_validate(tree)
    [counted] = sizes(config, check(config))
    matrices = 4 * counted.part.layers.stop + 1
    widest = 32 * 4 * 128  # a panel of the longest rows
    assert counted.weights <= held(config, 0) <= counted.weights + matrices * widest
