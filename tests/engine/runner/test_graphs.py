"""Compiled pieces give what eager ones give, for every number of tokens of their plan."""

from dataclasses import replace
from itertools import product

import compiled_graphs
import pytest
import torch
from pds_engine.config import EngineConfig
from pds_engine.models.decoder import Decoder
from pds_engine.models.loader import load
from pds_engine.models.pieces import Pieces
from pds_engine.models.registry import check
from pds_engine.models.weights import DenseWeights
from pds_engine.parallel.collectives import ALONE, Alone
from pds_engine.parallel.layout import part
from pds_engine.runner import graphs
from pds_kernels import graph as aot
from pds_kernels.cache import Cache

CPU = torch.device("cpu")


class Shard(Alone):
    """One of several shards that never speak to each other: enough to load one."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size


def configuration(folder, role: str, tp: int = 1, **bounds: int | None) -> EngineConfig:
    return EngineConfig.model_validate(
        {
            "model": {"path": folder, "dtype": "float32"},
            "role": role,
            "max_model_len": 128,
            "parallelism": {"tp": tp},
            "scheduler": {"max_running": 8, "chunk_size": 32, **bounds},
        }
    )


def planned(config: EngineConfig) -> tuple[aot.Graph, ...]:
    spec = check(config)
    return graphs.plan(config, spec, part(spec, config.parallelism, 0), CPU)


def test_roles_and_bounds_share_their_graphs(qwen3):
    roles = [configuration(qwen3, role) for role in ("prefill", "decode", "unified")]
    roles.append(configuration(qwen3, "unified", max_step_tokens=4))
    keys = [[graph.key_inputs() for graph in planned(config)] for config in roles]
    assert [graph.name for graph in planned(roles[0])] == ["before", "after"]
    assert all(other == keys[0] for other in keys)


def test_a_graph_holds_the_longest_step_of_its_configuration(qwen3):
    config = configuration(qwen3, "prefill", chunk_size=90_000, max_step_tokens=90_000)
    assert [graph.tokens for graph in planned(config)] == [(2, 131_072)] * 2


def test_a_sharded_layer_is_three_pieces_the_same_on_every_rank(qwen3):
    config = configuration(qwen3, "unified", tp=4)
    spec = check(config)
    plans = [graphs.plan(config, spec, part(spec, config.parallelism, r), CPU) for r in range(4)]
    assert [graph.name for graph in plans[0]] == ["heads", "join", "feed"]
    assert [graph.varying for graph in plans[0]] == [(0, 1), (0, 1), (0,)]
    keys = [[graph.key_inputs() for graph in plan] for plan in plans]
    assert all(other == keys[0] for other in keys)
    whole = {graph.key_inputs()["inputs"] for graph in planned(configuration(qwen3, "unified"))}
    assert all(key["inputs"] not in whole for key in keys[0])


def test_the_graphs_of_dp_ranks_hold_the_tokens_of_all(qwen3):
    wide = configuration(qwen3, "unified", max_step_tokens=40_000).model_dump()
    wide["parallelism"] |= {"dp": 4, "ranks_per_pod": 4}
    config = EngineConfig.model_validate(wide)
    spec = check(config)
    plans = [graphs.plan(config, spec, part(spec, config.parallelism, r), CPU) for r in range(4)]
    assert [graph.name for graph in plans[0]] == ["heads", "join", "feed"]
    assert {graph.tokens for graph in plans[0]} == {(2, 262_144)}
    keys = [[graph.key_inputs() for graph in plan] for plan in plans]
    assert all(other == keys[0] for other in keys)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return Cache(compiled_graphs.volume(), tmp_path_factory.mktemp("private"), compiled_graphs.SEAL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "tp"),
    [
        ("Qwen2ForCausalLM", 2),
        pytest.param("Qwen3ForCausalLM", 1, marks=pytest.mark.soak),
        pytest.param("DeepseekV2ForCausalLM", 1, marks=pytest.mark.soak),
        pytest.param("DeepseekV3ForCausalLM", 2, marks=pytest.mark.soak),
        pytest.param("Gemma3ForCausalLM", 1, marks=pytest.mark.soak),
        pytest.param("Gemma3ForCausalLM", 2, marks=pytest.mark.soak),
        pytest.param("GptOssForCausalLM", 1, marks=pytest.mark.soak),
        pytest.param("Olmo2ForCausalLM", 1, marks=pytest.mark.soak),
    ],
)
def test_compiled_pieces_equal_eager_ones(family, tp, models, cache):
    config = configuration(models[family], "decode", tp)
    decoder = load(config, 0, CPU, Shard(0, tp))
    loaded = {}
    for graph in graphs.plan(config, decoder.spec, decoder.part, CPU):
        artefact = graphs.fetch(graph, cache, 300)
        assert not graphs.fetch(replace(graph), cache, 300).built
        loaded[graph.name] = aot.load(artefact.folder)
    whole = graphs.compiled(config, decoder.spec, decoder.part, CPU, loaded)
    with torch.inference_mode():
        for layer, tokens in product((0, 1), (0, 1, 2, 5, 8)):
            eager = decoder.pieces[layer]
            found = outputs(whole[eager.shape], decoder, layer, tokens)
            for ours, theirs in zip(found, outputs(eager, decoder, layer, tokens), strict=True):
                torch.testing.assert_close(ours, theirs)


def outputs(pieces: Pieces, decoder: Decoder, layer: int, tokens: int) -> list[torch.Tensor]:
    """All that the pieces of a layer give, for the same inputs at each call."""
    torch.manual_seed(tokens)
    w, rope = decoder.weights.layers[layer], decoder.ropes[decoder.layers[layer].attention.rope]
    x, attended = torch.randn(tokens, 64), torch.randn(tokens, w.attention.out.shape[1])
    dense = w.feed if isinstance(w.feed, DenseWeights) else None
    if decoder.part.tp == 1:
        inputs = pieces.before(x, rope[:tokens], w, None)
        if dense is None:
            return [*inputs, *pieces.between(x, attended, w)]
        return [*inputs, pieces.after(x, attended, w, dense)]
    joined = pieces.join(x, torch.randn(tokens, 64), w.norms.attention_out, w.norms.feed_in)
    fed = [pieces.feed(joined[1], dense)] if dense else []
    return [*pieces.heads(x, rope[:tokens], w, ALONE, None), *joined, *fed]
