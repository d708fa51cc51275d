"""That backends differ by their interface alone, and what rests on it."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pds_engine
import pytest
from pds_engine.config import KvBackend, KvConfig
from pds_engine.kv.transfer.base import Backend
from pds_engine.kv.transfer.registry import BACKENDS, shared_pool

ROOT = Path(pds_engine.__file__).parent
TRANSFER = "kv/transfer"


def found(wanted: Callable[[ast.AST], bool]) -> set[str]:
    """The files of the engine with a node of which `wanted` is true."""
    return {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        if any(wanted(node) for node in ast.walk(ast.parse(path.read_text())))
    }


def test_the_registry_has_what_a_configuration_may_ask_for():
    assert set(BACKENDS) == set(get_args(KvBackend))
    assert [BACKENDS[name].name for name in BACKENDS] == list(BACKENDS)
    assert set(KvConfig().backends) <= set(BACKENDS)


def test_whose_pages_are_fenced_by_their_own_receiver():
    """Quarantine rests on it: who is one-sided cannot be stopped from the decode side."""
    assert {name: backend.one_sided for name, backend in BACKENDS.items()} == {
        "nixl": True,
        "tcp": False,
        "shm": False,
    }


def test_a_backend_must_say_whether_it_is_one_sided():
    with pytest.raises(TypeError, match="Silent must say whether its writes are one_sided"):
        type("Silent", (Backend,), {})


def test_who_needs_a_pool_in_shared_memory():
    assert (shared_pool(("nixl", "tcp")), shared_pool(("tcp", "shm"))) == (False, True)


def test_nobody_else_names_a_backend():
    """Its name stands in the configuration, in its own file, and where it has ports of its own."""
    own = {f"{TRANSFER}/{name}.py" for name in BACKENDS}

    def names(node: ast.AST) -> bool:
        return isinstance(node, ast.Constant) and node.value in BACKENDS

    assert found(names) == own | {"config.py", "ports.py"}


def test_nobody_else_knows_a_backends_class():
    modules = {f"pds_engine.kv.transfer.{name}" for name in BACKENDS}

    def imports(node: ast.AST) -> bool:
        return isinstance(node, ast.ImportFrom) and node.module in modules

    # What goes over shared memory is what goes over TCP, by reference.
    assert found(imports) == {f"{TRANSFER}/registry.py", f"{TRANSFER}/shm.py"}


def test_nobody_asks_what_a_backend_is():
    def asks(node: ast.AST) -> bool:
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "isinstance":
            return False
        return any(getattr(name, "id", "").endswith("Backend") for name in ast.walk(node.args[1]))

    assert found(asks) == set()
