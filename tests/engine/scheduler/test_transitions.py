"""That a request changes by the ledger's transitions alone."""

import ast
from collections.abc import Callable
from pathlib import Path

import pds_engine.scheduler
import pytest
from pds_engine.messages import Failed, Token

SOURCES = sorted(Path(pds_engine.scheduler.__file__).parent.glob("*.py"))


def where(found: Callable[[ast.AST], bool]) -> list[str]:
    """The modules that have a node of which `found` is true, once for each."""
    return [
        path.stem
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if found(node)
    ]


def called(node: ast.AST, name: str) -> bool:
    """A call of `name`, however it is reached."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    return getattr(function, "id", None) == name or getattr(function, "attr", None) == name


def test_one_module_assigns_phases():
    def assigns(node: ast.AST) -> bool:
        stored = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        return stored and node.attr == "phase"

    assert set(where(assigns)) == {"lifecycle"}


@pytest.mark.parametrize("collection", ["queue", "requests", "prefilling", "decoding"])
def test_one_module_moves_requests(collection: str):
    """`ledger.queue.push(...)`, `ledger.decoding.popleft()` and the like stand there alone."""
    changes = {"push", "remove", "pop", "popleft", "append", "appendleft", "add", "update", "clear"}

    def moves(node: ast.AST) -> bool:
        function = getattr(node, "func", None)
        on = getattr(function, "value", None)
        names = {collection, f"_{collection}"}
        return getattr(function, "attr", "") in changes and getattr(on, "attr", "") in names

    assert set(where(moves)) == {"lifecycle"}


def test_tokens_are_built_in_one_place():
    assert where(lambda node: called(node, Token.__name__)) == ["finish"]


def test_failures_are_reported_in_one_place():
    """But for those of requests that were rejected: they never were the ledger's."""
    assert where(lambda node: called(node, Failed.__name__)) == ["party"]
    assert where(lambda node: called(node, "failure")) == ["lifecycle", "scheduler"]
