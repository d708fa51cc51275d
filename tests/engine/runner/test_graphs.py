"""Compiled pieces give what eager ones give, for every number of tokens of their plan."""

from dataclasses import replace

import pytest
import torch
from pds_engine.config import EngineConfig
from pds_engine.models.loader import load
from pds_engine.models.registry import check
from pds_engine.parallel.layout import part
from pds_engine.runner import graphs
from pds_kernels import graph as aot
from pds_kernels.cache import Cache

CPU = torch.device("cpu")


def configuration(folder, role: str, **bounds: int | None) -> EngineConfig:
    return EngineConfig.model_validate(
        {
            "model": {"path": folder, "dtype": "float32"},
            "role": role,
            "max_model_len": 128,
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


@pytest.mark.slow
def test_compiled_pieces_equal_eager_ones(qwen3, tmp_path):
    config = configuration(qwen3, "decode")
    decoder = load(config, 0, CPU)
    plan = graphs.plan(config, decoder.spec, decoder.part, CPU)
    cache = Cache(tmp_path, b"key")
    loaded = {}
    for graph in plan:
        artefact = graphs.fetch(graph, cache, 300)
        assert artefact.built
        assert not graphs.fetch(replace(graph), cache, 300).built
        loaded[graph.name] = aot.load(artefact.folder)
    compiled = graphs.CompiledPieces(decoder.pieces.shape, loaded)
    weights = decoder.weights.layers[1]
    with torch.inference_mode():
        for tokens in (1, 2, 5, 8):
            x, rope = torch.randn(tokens, 64), decoder.rope[:tokens]
            attended = torch.randn(tokens, 4 * 32)
            for ours, theirs in zip(
                (*compiled.before(x, rope, weights), compiled.after(x, attended, weights)),
                (
                    *decoder.pieces.before(x, rope, weights),
                    decoder.pieces.after(x, attended, weights),
                ),
                strict=True,
            ):
                torch.testing.assert_close(ours, theirs)
