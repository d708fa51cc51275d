"""A small model on disk, the keys of a group, and whole groups of real processes."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pds_engine.config import EngineConfig
from pds_engine.keys import Keys
from pds_engine.messages import Sampling, Submit
from real_group import Group


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    config = transformers.Qwen3Config(
        vocab_size=200,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("model")
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def config(model: Path) -> EngineConfig:
    return EngineConfig.model_validate(
        {
            "model": {"path": model, "dtype": "float32"},
            "max_model_len": 256,
            "kv": {"pages": 64, "backends": ["tcp"], "port_base": 0},
            "scheduler": {"max_running": 4},
        }
    )


@pytest.fixture(scope="session")
def keys() -> Keys:
    return Keys.make()


@pytest.fixture
def start(keys: Keys, tmp_path: Path) -> Iterator[Callable[..., Group]]:
    """Starts groups for one test."""
    groups: list[Group] = []

    def begin(config: EngineConfig, name: str) -> Group:
        folder = tmp_path / name
        folder.mkdir()
        groups.append(Group(config, keys, folder, name))
        return groups[-1]

    yield begin
    for group in groups:
        group.close()


@pytest.fixture(scope="module")
def running(
    keys: Keys, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[EngineConfig], Group]]:
    """A group of this configuration that is ready, started once for a module's tests."""
    groups: dict[EngineConfig, Group] = {}

    def get(config: EngineConfig) -> Group:
        if config not in groups:
            name = f"group-{len(groups)}"
            groups[config] = Group(config, keys, tmp_path_factory.mktemp(name), name)
            groups[config].await_ready()
        return groups[config]

    yield get
    for group in groups.values():
        group.close()


@pytest.fixture(scope="module")
def lone(
    keys: Keys, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[EngineConfig], Group]]:
    """A group of this configuration that is ready, and ends as soon as another is asked for."""
    groups: dict[EngineConfig, Group] = {}
    numbers = count()

    def get(config: EngineConfig) -> Group:
        if config not in groups:
            while groups:
                groups.popitem()[1].close()
            name = f"lone-{next(numbers)}"
            groups[config] = Group(config, keys, tmp_path_factory.mktemp(name), name)
            groups[config].await_ready()
        return groups[config]

    yield get
    for group in groups.values():
        group.close()


@pytest.fixture(scope="session")
def shaped(config: EngineConfig) -> Callable[..., EngineConfig]:
    """`config` with chunks of 32 tokens, and other keys by their dotted names."""

    def make(**keys: Any) -> EngineConfig:
        tree = config.model_dump()
        tree["scheduler"]["chunk_size"] = 32
        for name, value in keys.items():
            *parents, last = name.split("__")
            node = tree
            for parent in parents:
                node = node[parent]
            node[last] = value
        split = tree["parallelism"]
        split["ranks_per_pod"] = split["pp"] * split["tp"] * split["dp"]
        return EngineConfig.model_validate(tree)

    return make


@pytest.fixture(scope="session")
def loaded(model: Path) -> torch.nn.Module:
    """The model in transformers, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def logprobs(loaded: torch.nn.Module) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """Log-probabilities of transformers: row i is of what follows the first i + 1 of these ids."""

    @cache
    def of(ids: tuple[int, ...]) -> torch.Tensor:
        with torch.inference_mode():
            return loaded(torch.tensor([ids])).logits[0].log_softmax(-1)

    return of


@pytest.fixture(scope="session")
def greedy(loaded: torch.nn.Module) -> Callable[[Sequence[int], int], list[int]]:
    """Tokens of transformers in float32; refuses a prompt on which two scores nearly tie."""

    def tokens(prompt: Sequence[int], count: int) -> list[int]:
        ids, found, cache = torch.tensor([list(prompt)]), [], None
        with torch.inference_mode():
            for _ in range(count):
                out = loaded(ids, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                best = out.logits[0, -1].topk(2)
                assert best.values[0] - best.values[1] > 1e-4
                found.append(int(best.indices[0]))
                ids = torch.tensor([[found[-1]]])
        return found

    return tokens


@pytest.fixture(scope="session")
def prompt() -> Callable[[int, int], tuple[int, ...]]:
    """Random token ids: a length and a seed."""

    def make(length: int, seed: int) -> tuple[int, ...]:
        source = torch.Generator().manual_seed(seed)
        return tuple(torch.randint(0, 200, (length,), generator=source).tolist())

    return make


@pytest.fixture(scope="session")
def submit() -> Callable[..., Submit]:
    """A request of `count` tokens; greedy unless `sampling` says more."""

    def make(
        request_id: str,
        ids: Sequence[int],
        count: int,
        sampling: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Submit:
        options = {"temperature": 0.0, **(sampling or {})}
        return Submit(
            request_id=request_id,
            prompt_ids=tuple(ids),
            sampling=Sampling(max_tokens=count, **options),
            seed=keys.pop("seed", 1),
            **keys,
        )

    return make
