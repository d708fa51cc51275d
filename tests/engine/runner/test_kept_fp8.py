"""Weights that stay in FP8: a rank holds what it would hold plain, and computes nearly the same."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import cpu_libraries
import pytest
import torch
from fp8_models import quantise
from pds_engine.layers.linear import Fp8Matrix
from pds_engine.messages import Sampling
from pds_engine.models import meta, reader
from pds_engine.models.loader import load
from pds_engine.models.registry import check
from pds_engine.models.weights import LayerWeights, tensors
from pds_engine.parallel.collectives import Alone
from pds_engine.sizing import sizes
from pds_kernels.choosing import Kernel, always
from pds_kernels.fp8 import Fp8Weight, dequantise
from pds_kernels.targets import gpu
from random_models import saved
from runner_driver import Driver
from torch import Tensor

BLOCK = (16, 32)
FAMILIES = ("DeepseekV3ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Phi3ForCausalLM")
ROOMS = ("fp8_linear", "grouped_gemm")
Keep = Callable[[str], None]


class Shard(Alone):
    """One of several ranks, which asks nothing of the others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: saved(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}
    for folder in made.values():
        quantise(folder, BLOCK)
    return made


@pytest.fixture
def keep(monkeypatch: pytest.MonkeyPatch) -> Keep:
    """From here on weights stay in FP8, and the kernels of this name multiply by them."""

    def by(name: str) -> None:
        for room in ROOMS:
            dispatch = import_module(f"pds_kernels.{room}.dispatch")
            make = import_module(f"pds_kernels.{room}.{name}").make
            kernels = Kernel("kept", always, make), dispatch.KERNELS[-1]
            monkeypatch.setattr(dispatch, "KERNELS", kernels)
        monkeypatch.setattr(reader, "on_triton", SimpleNamespace(runs_on=lambda device: True))

    return by


def each(weights: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Every tensor, matrix and stack of a layer, by name."""
    if isinstance(weights, tuple) and not isinstance(weights, Fp8Weight):
        for field, held in zip(weights._fields, weights, strict=True):  # type: ignore[attr-defined]
            yield from each(held, f"{name}.{field}".strip("."))
    elif not name.endswith(".reading"):
        yield name, weights


def of_rank(folder: Path, rank: int, tp: int, ep: bool) -> list[LayerWeights]:
    config = Driver.configured(folder, parallelism={"tp": tp, "ep": ep})
    with cpu_libraries.without():  # plain weights are in no kernel's order
        return list(load(config, rank, torch.device("cpu"), Shard(rank, tp)).weights.layers)


KEPT = {
    ("DeepseekV3ForCausalLM", 1, False): {
        "attention.q_a", "attention.q_b", "attention.kv_a", "attention.out",
        "feed.gate_up", "feed.down", "feed.shared.down",
    },  # the gates of experts and of the shared block end within a block of 16 rows
    ("DeepseekV3ForCausalLM", 2, False): {
        "attention.q_a", "attention.q_b", "attention.kv_a", "feed.gate_up",
    },  # columns of 32 are cut
    ("Qwen3ForCausalLM", 1, False): {"attention.qkv", "attention.out", "feed.gate_up", "feed.down"},
    ("Qwen3ForCausalLM", 2, False): {"attention.qkv", "attention.out", "feed.gate_up"},
    ("Qwen3MoeForCausalLM", 1, False): {
        "attention.qkv", "attention.out", "feed.gate_up", "feed.down",
        "experts.gate_up", "experts.down",
    },
    ("Qwen3MoeForCausalLM", 2, False): {"attention.qkv", "attention.out", "feed.gate_up"},
    ("Qwen3MoeForCausalLM", 2, True): {
        "attention.qkv", "attention.out", "feed.gate_up", "experts.gate_up", "experts.down",
    },  # experts are whole
    ("Phi3ForCausalLM", 2, False): {"attention.qkv", "attention.out", "feed.gate_up"},
}  # fmt: skip


@pytest.mark.parametrize(("family", "tp", "ep"), KEPT)
def test_a_rank_holds_the_numbers_that_it_would_hold_plain(
    family: str, tp: int, ep: bool, models: dict[str, Path], keep: Keep
) -> None:
    """Scales are cut, joined and reordered as weights are; what cannot be is made plain."""
    plain = [of_rank(models[family], rank, tp, ep) for rank in range(tp)]
    keep("reference")
    found = set()
    for rank in range(tp):
        for exact, layer in zip(plain[rank], of_rank(models[family], rank, tp, ep), strict=True):
            for (name, want), (_, held) in zip(each(exact), each(layer), strict=True):
                if isinstance(held, Fp8Matrix):
                    held = held.stored
                if isinstance(held, Fp8Weight):
                    stack = held.weight.dim() > 2
                    found.add(name.replace("feed", "experts") if stack else name)
                    held = dequantise(*held, torch.float32)
                assert isinstance(want, Tensor) and isinstance(held, Tensor)
                assert torch.equal(want, held), name
    assert found == KEPT[family, tp, ep]


@pytest.mark.parametrize(("family", "tp", "ep"), KEPT)
def test_memory_is_counted_as_weights_are_kept(
    family: str,
    tp: int,
    ep: bool,
    models: dict[str, Path],
    keep: Keep,
) -> None:
    """On the meta device, for a GPU that is not here: no kernel of a CPU packs plain weights."""
    keep("reference")
    config = Driver.configured(models[family], parallelism={"tp": tp, "ep": ep})
    spec = check(config)
    counted = sizes(config, spec, weigh=partial(meta.layer_bytes, config, spec, gpu=gpu("sm_90")))
    plain = sizes(config, spec)
    for rank, size in enumerate(counted):
        with cpu_libraries.without():
            held = load(config, rank, torch.device("cpu"), Shard(rank, tp)).weights
        alike = {one.data_ptr(): one.nbytes for one in tensors(held) if one.nbytes}
        assert size.weights == sum(alike.values())  # a head that is tied counts once
        assert size.weights < plain[rank].weights


def probabilities(folder: Path) -> Tensor:
    """Of the tokens of a prompt, given those before them."""
    prompt = [3 + 7 * at % 311 for at in range(12)]
    asked = Sampling(max_tokens=2, temperature=0.0, prompt_logprobs=0)
    [answer] = Driver(folder).run([prompt], asked, chunk=9)
    return torch.tensor([chance.chosen for chance in answer.prompt_chances])


@pytest.mark.parametrize("family", ["DeepseekV3ForCausalLM", "Qwen3MoeForCausalLM"])
def test_a_model_in_fp8_is_off_by_the_rounding_of_activations(
    family: str, models: dict[str, Path], keep: Keep
) -> None:
    """By Triton's kernel (interpreted) as by the definition: they differ where a number lies midway
    between two of FP8."""
    folder = models[family]
    plain = probabilities(folder)
    keep("reference")
    defined = probabilities(folder)
    keep("triton")
    found = probabilities(folder)
    rounding, other = (defined - plain).abs().mean(), (found - defined).abs().mean()
    print(f"off by {rounding:.4f} for rounding, by {other:.4f} for the order of sums")
    assert 0 < rounding < 0.05 * plain.abs().mean()
    assert other < rounding / 4
