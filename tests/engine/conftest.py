"""The tiny model's tokenizer, a model that overflows, and ranks as processes that speak gloo."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# forked.py and its like are helpers of these tests alone; tests have no packages.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "witness"))
sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))

from forked import Forked, one_rank
from pds_engine.log import JsonFormatter

if find_spec("torch"):
    import cpu_libraries  # noqa: F401  layers choose its kernels for CPUs, as in a pod that is warm

if TYPE_CHECKING:  # an operator's environment runs these tests' neighbours without torch
    import torch
    from pds_engine.text.tokenizer import Tokenizer

Ranks = Callable[..., list[Any]]
TINY = Path(__file__).parents[2] / "examples" / "models" / "tiny"


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Commands that a test calls in this process set up its logs: not those of later tests."""
    root = logging.getLogger()
    level = root.level
    yield
    root.setLevel(level)
    for handler in [each for each in root.handlers if isinstance(each.formatter, JsonFormatter)]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def tokenizer() -> "Tokenizer":
    """The tiny model's."""
    from pds_engine.text.tokenizer import Tokenizer

    return Tokenizer(TINY)


@pytest.fixture
def ranks(tmp_path: Path) -> Ranks:
    """ranks(function, size, **options): what `function(collectives, **options)` gives on each rank.

    The function is one of a file's top level, since each rank loads that file anew; options and
    results are JSON. A rank that ends without a result has None for one.
    """

    def run(function: Callable[..., Any], size: int, **options: Any) -> list[Any]:
        import torch.distributed as dist

        store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60)
        )
        code = function.__code__
        results = [tmp_path / f"rank-{rank}.json" for rank in range(size)]
        logs = [tmp_path / f"rank-{rank}.log" for rank in range(size)]
        children = [
            Forked(
                logs[rank], one_rank, rank, size, store.port,
                code.co_filename, code.co_name, json.dumps(options), str(results[rank]),
            )
            for rank in range(size)
        ]  # fmt: skip
        try:
            for child in children:
                child.wait(300)
        finally:
            for child in children:
                child.kill()
                child.wait()
        for rank, log in enumerate(logs):
            print(f"rank {rank}:\n{log.read_text()}", file=sys.stderr)
        return [json.loads(path.read_text()) if path.exists() else None for path in results]

    return run


POISON = 5


@pytest.fixture
def poison() -> int:
    """A token on which a model has no answer once `overflow` has changed its weights."""
    return POISON


@pytest.fixture
def overflow() -> "Callable[[dict[str, torch.Tensor]], None]":
    """Changes a model's tensors: finite still, but its numbers overflow where `poison` is among the
    tokens, and else never."""

    def edit(tensors: "dict[str, torch.Tensor]") -> None:
        # The last dimension of the first layer's input is POISON's alone; the MLP multiplies it by
        # the largest of numbers, up and down.
        huge, first = 3e38, "model.layers.0."
        embedding = tensors["model.embed_tokens.weight"]
        embedding[:, -1] = 0
        embedding[POISON, -1] = 1
        tensors[f"{first}self_attn.o_proj.weight"][-1] = 0
        tensors[f"{first}mlp.gate_proj.weight"][:, -1] = huge
        up = tensors[f"{first}mlp.up_proj.weight"]
        up[::2, -1], up[1::2, -1] = huge, -huge

    return edit
