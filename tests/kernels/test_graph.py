"""Ahead-of-time graphs: the same numbers as the function, from a package that needs no compiler."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from pds_kernels.graph import Graph, build, load, toolchain


def gated(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    gate, up = torch.nn.functional.linear(x, weight).chunk(2, -1)
    return x + torch.nn.functional.silu(gate) * up


def graph(tokens: tuple[int, int], width: int = 8) -> Graph:
    shapes = (((16, width), torch.float32), ((2 * width, width), torch.float32))
    return Graph("gated", gated, shapes, varying=(0,), tokens=tokens)


@pytest.mark.slow
@pytest.mark.soak
def test_one_package_serves_every_number_of_tokens(tmp_path):
    build(graph((2, 64)), tmp_path)
    compiled = load(tmp_path)
    weight = torch.randn(16, 8)
    for tokens in (2, 3, 16, 17, 64):
        x = torch.randn(tokens, 8)
        torch.testing.assert_close(compiled(x, weight), gated(x, weight))


def test_the_key_follows_shapes_and_source(tmp_path):
    source = tmp_path / "layer.py"
    source.write_text("one")
    written = replace(graph((2, 64)), sources=(source,))
    before = written.key_inputs()
    source.write_text("two")
    assert written.key_inputs() != before
    assert replace(written, constants="eps=1").key_inputs() != written.key_inputs()
    base = graph((2, 64)).key_inputs()
    assert base == graph((2, 64)).key_inputs()
    assert base != graph((2, 128)).key_inputs()
    assert base != graph((2, 64), width=16).key_inputs()


@pytest.mark.parametrize("compiler", ["/bin/false", "no-such-compiler"])
def test_a_compiler_that_does_not_run_is_named(compiler, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(RuntimeError, match=f"the C\\+\\+ compiler {compiler} does not run"):
        toolchain.__wrapped__()


def test_who_loads_graphs_imports_no_compiler():
    code = (
        "import sys, pds_engine.worker.process, pds_engine.warmup;"
        "print({'sympy', 'torch._dynamo', 'torch._inductor.compile_fx'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
