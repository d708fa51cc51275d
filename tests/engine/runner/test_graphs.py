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


@pytest.mark.parametrize(
    ("role", "step", "bounds"),
    [
        ("prefill", None, {"extend-before": 41, "extend-after": 41}),
        ("decode", None, {"decode-before": 8, "decode-after": 8}),
        ("unified", None, {"extend-before": 41, "extend-after": 41}),
        (
            "unified",
            4,  # fewer than may decode at once
            {"extend-before": 5, "extend-after": 5, "decode-before": 8, "decode-after": 8},
        ),
    ],
)
def test_the_shape_plan_follows_the_role(qwen3, role, step, bounds):
    config = configuration(qwen3, role, max_step_tokens=step)
    spec = check(config)
    plan = graphs.plan(config, spec, part(spec, config.parallelism, 0), CPU)
    assert {graph.name: graph.tokens[1] for graph in plan} == bounds


def test_pieces_refuse_more_tokens_than_were_planned(qwen3):
    config = configuration(qwen3, "decode")
    spec = check(config)
    plan = graphs.plan(config, spec, part(spec, config.parallelism, 0), CPU)
    pieces = graphs.CompiledPieces(
        graphs.shape_of(spec, part(spec, config.parallelism, 0)),
        {graph.name: (graph, lambda *_: None) for graph in plan},
    )
    decoder = load(config, 0, CPU)
    with pytest.raises(ValueError, match="9 tokens, the shape plan ends at 8"):
        pieces.before(torch.zeros(9, 64), torch.zeros(9, 32), decoder.weights.layers[0])


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
        loaded[graph.name] = (graph, aot.load(artefact.folder))
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
